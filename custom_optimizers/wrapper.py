"""An optimizer around another one, which it uses as a rule: one learning rate, one set of variables, one config."""

import keras

from custom_optimizers import sparse
from custom_optimizers.optimizer import LIMITS, Optimizer


class Wrapper(Optimizer):
    """Takes over the learning rate and the options of the inner optimizer, which itself is never built or applied.

    All state belongs to the wrapper, so checkpoints and .keras files hold it like any other optimizer's. Raises
    TypeError for an inner optimizer that is not of this package: Keras' own write their variables themselves.
    """

    def __init__(self, inner: Optimizer, **options):
        if isinstance(inner, dict):
            inner = keras.saving.deserialize_keras_object(inner)
        if not isinstance(inner, Optimizer):
            raise TypeError(
                f"{type(self).__name__} wraps optimizers of custom_optimizers, got {type(inner).__module__}."
                f"{type(inner).__name__}; there is an Adam, AdamW, Momentum and Adagrad here."
            )
        if inner.outermost:
            kept = "its estimates" if inner.needs_estimates else "its second gradient"
            raise ValueError(
                f"{type(self).__name__} cannot wrap {type(inner).__name__}, which would never get {kept}: it must be "
                "the outermost."
            )
        if inner.built:
            raise ValueError(f"{type(self).__name__}: the inner optimizer is built already; wrap a new one.")
        rate = inner._learning_rate
        rate = float(sparse.read(rate)) if isinstance(rate, keras.Variable) else rate
        taken = {name: getattr(inner, name) for name in ("use_ema", *LIMITS)}
        super().__init__(rate, **{**taken, **options})
        self._selection = inner._selection
        inner.weight_decay = self.weight_decay  # for a rule that does its own
        self.__dict__["inner"] = inner  # out of Keras' sight: its learning rate and count are not used
        # One table of variables for both, as slots() of the inner one may ask for a place. Keras would track a copy.
        self.__dict__["_trainable_variables_indices"] = inner._trainable_variables_indices

    @property
    def lazy(self) -> bool:  # type: ignore[override]
        return self.inner.lazy

    @property
    def follows(self) -> bool:  # type: ignore[override]
        return self.inner.follows

    @property
    def decays(self) -> bool:  # type: ignore[override]
        return self.inner.decays

    @property
    def two_points(self) -> bool:  # type: ignore[override]
        return self.inner.two_points

    def untouched(self) -> None:
        """Raises ValueError for an inner optimizer whose deltas must not be changed."""
        if self.inner.follows:
            raise ValueError(
                f"{type(self).__name__} would change the steps of {type(self.inner).__name__}, whose averages follow "
                "the weights as it moves them; use its own weight_decay, with exclude_from_weight_decay, or put the "
                "other links before it."
            )

    def slots(self, variable):
        return self.inner.slots(variable)

    def shared(self):
        return self.inner.shared()

    @property
    def averages(self) -> bool:
        return self.use_ema or self.inner.averages or type(self).evaluation is not Wrapper.evaluation

    def paced(self, steps):
        return self.inner.paced(steps)

    def evaluation(self, weight, slots):
        return self.inner.evaluation(weight, slots)

    def training(self, weight, slots):
        return self.inner.training(weight, slots)

    def patterns(self):
        return self.inner.patterns()

    def build(self, variables):
        super().build(variables)
        self.settle()

    def settle(self) -> None:
        """What an inner optimizer, which is never built itself, does once the variables are known."""
        if isinstance(self.inner, Wrapper):
            self.inner.settle()

    def update_all(self, gradients, weights, slots, steps, shared):
        return self.inner.update_all(gradients, weights, slots, steps, shared)

    def get_config(self):
        config = super().get_config()
        innermost = inner = keras.saving.serialize_keras_object(self.inner)
        innermost["config"].pop("selection", None)
        while "inner" in innermost["config"]:
            innermost = innermost["config"]["inner"]
        innermost["config"]["learning_rate"] = config.pop("learning_rate")  # it may have been changed since
        return {"inner": inner, **config}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        optimizer = inner = super().from_config(config, custom_objects)
        while isinstance(inner, Wrapper):
            inner = inner.inner
            inner._selection = optimizer._selection  # the config of a wrapper has the selection of all
        return optimizer
