"""Sharpness-aware minimization: descend by the gradient at the worst weights nearby, which takes two gradients."""

import types

import keras
from keras import ops, saving

from custom_optimizers import clipping, ranges, replicas, sparse
from custom_optimizers.optimizer import Slot
from custom_optimizers.state import path
from custom_optimizers.wrapper import Wrapper


@saving.register_keras_serializable("minibatch")
class SAM(Wrapper):
    """The inner optimizer, fed with the gradient at w + rho * g / |g| in place of g, the gradient at w.

    Foret et al., Sharpness-Aware Minimization (2010.01412), equations 2 and 3 with p = 2. |g| runs over ALL variables,
    and g is summed over replicas (not each replica's own, as in the paper's m-sharpness), so any number of replicas
    makes the same step. With fit, use sharpness_aware(model). A custom loop takes two gradients of the SAME batch:

        optimizer.ascend(gradients at w, weights)        # moves the weights and remembers where they were
        optimizer.apply(gradients there, weights)        # puts them back and descends

    Second gradients must leave the statistics of batch normalization alone and see the dropout of the first ones. Costs
    two gradients an update and a copy of the weights. It is not driven by fit alone, so no table of optimizers has it.

    Args: inner; rho of 0 or above, 0 for the inner optimizer itself. Raises ValueError for
    gradient_accumulation_steps: each mini-batch would have to be kept for its second gradient.
    """

    outermost = True

    def __init__(self, inner, rho=0.05, **options):
        super().__init__(inner, **options)
        self.rho = ranges.not_negative("rho", rho)
        if self.gradient_accumulation_steps:
            raise ValueError(f"{type(self).__name__} does not go with gradient_accumulation_steps; use larger batches.")
        self.__dict__["_waiting"] = 0  # calls of ascend without their apply; as Python sees them, so while tracing

    def slots(self, variable):
        return {**self.inner.slots(variable), "home": Slot()}

    def shared(self):
        return {**self.inner.shared(), "away": 0.0}  # 1 between ascend and apply

    def stretch(self, weight, variable):
        """T of adaptive SAM: the perturbation is rho * T^2 g / |T g|."""
        return ops.ones_like(weight)

    def ascend(self, gradients, variables=None) -> None:
        """Moves the weights to where the gradient that `apply` takes is due. gradients as given to apply."""
        gradients = list(gradients)
        variables = self._known(gradients, variables)
        pairs = [
            (g, v)
            for g, v in zip(gradients, variables, strict=True)
            if g is not None and not self._overwrite_variable_with_gradient(v)
        ]
        if not pairs:
            raise ValueError("ascend: no variable has a gradient.")
        gradients, variables = [g for g, _ in pairs], [v for _, v in pairs]
        if self.loss_scale_factor is not None:
            gradients = [ops.divide(g, self.loss_scale_factor) for g in gradients]  # sparse ones have no /
        self._waiting += 1
        total = replicas.sum_over_replicas(gradients)
        replicas.everywhere(lambda total: self._leave(total, variables), variables, total)

    def _leave(self, gradients: list, variables: list) -> None:
        self._return()  # a second ascend starts from where the first one did
        for variable, home in self._homes():
            home.assign(ops.cast(ops.convert_to_tensor(variable), home.dtype))
        homes = [ops.convert_to_tensor(self._state.slots[self._get_variable_index(v)]["home"]) for v in variables]
        dense = [sparse.summed(g, False, tuple(v.shape))[1] for g, v in zip(gradients, variables, strict=True)]
        dense = [ops.cast(g, home.dtype) for g, home in zip(dense, homes, strict=True)]
        scales = [self.stretch(home, v) for home, v in zip(homes, variables, strict=True)]
        stretched = [scale * g for scale, g in zip(scales, dense, strict=True)]
        share = self.rho / ops.maximum(clipping.norm(stretched), 1e-12)
        for variable, home, scale, g in zip(variables, homes, scales, stretched, strict=True):
            variable.assign(ops.cast(home + ops.cast(share, home.dtype) * scale * g, variable.dtype))
        self._state.shared["away"].assign(1.0)

    def restore(self) -> None:
        """Puts the weights back after `ascend`, for a loop that may skip `apply`. `apply` does so by itself."""
        if self.built:
            replicas.everywhere(lambda _: self._return(), self._trainable_variables, [])

    def _return(self) -> None:
        away = ops.convert_to_tensor(self._state.shared["away"])
        for variable, home in self._homes():
            value = ops.cast(ops.convert_to_tensor(home), variable.dtype)
            variable.assign(ops.where(away > 0, value, ops.convert_to_tensor(variable)))
        self._state.shared["away"].assign(ops.zeros_like(away))

    def _homes(self):
        pairs = zip(self._trainable_variables, self._state.slots, strict=True)
        return [(variable, slots["home"]) for variable, slots in pairs if slots]

    def apply_total(self, gradients, variables):
        if self._waiting < 1:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} needs a second gradient: call sharpness_aware(model) before fit, also after loading a model; "
                f"in a loop of your own call {name}.ascend(gradients, variables) before {name}.apply."
            )
        self._waiting -= 1
        super().apply_total(gradients, variables)

    def _descend(self, gradients, variables):
        self._return()
        super()._descend(gradients, variables)

    def update_all(self, gradients, weights, slots, steps, shared):
        deltas, new, kept = self.inner.update_all(gradients, weights, slots, steps, shared)
        new = [{**each, "home": slot["home"]} for each, slot in zip(new, slots, strict=True)]
        return deltas, new, {**kept, "away": shared["away"]}


@saving.register_keras_serializable("minibatch")
class ASAM(SAM):
    """SAM with the perturbation rho * T^2 g / |T g|, T = |w| + eta for each element: it does not change with w's scale.

    Kwon et al., ASAM (2102.11600), equation 5, element by element. T is 1 for biases (variables named bias or beta).

    Args: inner; rho of 0 or above, some ten times SAM's; eta of 0 or above.
    """

    def __init__(self, inner, rho=0.5, eta=0.01, **options):
        super().__init__(inner, rho, **options)
        self.eta = ranges.not_negative("eta", eta)

    def stretch(self, weight, variable):
        if path(variable).split("/")[-1] in ("bias", "beta"):
            return ops.ones_like(weight)
        return ops.abs(weight) + self.eta


def sharpness_aware(model: keras.Model) -> keras.Model:
    """The same model, whose fit takes both gradients that a SAM optimizer needs.

        sharpness_aware(model).compile(optimizer=SAM(AdamW(1e-3)), loss=...)

    The second pass starts from the same seeds, so dropout masks are those of the first one (layers must draw from
    their own keras.random.SeedGenerator, as Keras' do), and what it does to the statistics of batch normalization is
    undone. Loss and metrics are those of the first pass. A LossScaleOptimizer around SAM is fine: a step that it skips
    leaves the weights where they were. Nothing of it is saved with the model: call it again after loading.

    Raises RuntimeError on another backend than TensorFlow, and ValueError for a model with a train_step of its own.
    """
    if not replicas.on_tensorflow():
        raise RuntimeError("sharpness_aware needs the TensorFlow backend; call ascend and apply in a loop of your own.")
    if type(model).train_step is not keras.Model.train_step:
        raise ValueError(f"{type(model).__name__} has a train_step of its own: call ascend and apply there.")
    model.train_step = types.MethodType(_train_step, model)
    model.train_function = None
    return model


def _train_step(model, data):
    """Keras' train_step with a second pass."""
    optimizer = model.optimizer
    sam = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(sam, SAM):
        raise ValueError(f"sharpness_aware: the optimizer must be SAM or ASAM, got {type(sam).__name__}.")
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    weights, others = model.trainable_weights, model.non_trainable_variables
    before = [ops.copy(ops.convert_to_tensor(variable)) for variable in others]
    first, loss, outputs = _gradients(model, x, y, sample_weight)
    after = [ops.copy(ops.convert_to_tensor(variable)) for variable in others]
    size = ops.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]
    model._loss_tracker.update_state(loss, sample_weight=size)
    if sam is not optimizer:
        scale = optimizer.scale_loss(1.0)
        first = [None if g is None else g / ops.cast(scale, g.dtype) for g in first]
    sam.ascend(first, weights)
    _assign(others, before)
    second, _, _ = _gradients(model, x, y, sample_weight)
    _assign(others, after)
    sam.restore()  # before apply: a LossScaleOptimizer may skip it
    optimizer.apply(second, weights)
    return model.compute_metrics(x, y, outputs, sample_weight=sample_weight)


def _gradients(model, x, y, sample_weight):
    """(gradients of the scaled loss, this replica's mean loss, outputs)."""
    import tensorflow as tf
    from keras.src.losses.loss import unscale_loss_for_distribution

    with tf.GradientTape() as tape:
        outputs = model(x, training=True) if model._call_has_training_arg else model(x)
        loss = model._compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True)
        scaled = model.optimizer.scale_loss(loss)
    return tape.gradient(scaled, model.trainable_weights), unscale_loss_for_distribution(loss), outputs


def _assign(variables: list, values: list) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
