"""What chain(...) puts before and after a rule: functions of gradients, and of the steps that the rule makes of them.

They see the gradient of the whole batch (summed over replicas and repeated rows). For a sparse gradient of a lazy rule
they see the rows that it names.
"""

import inspect

from keras import ops

from custom_optimizers import clipping, ranges, sparse


class Transform:
    """A link of a chain. `before` changes gradients, `after` the deltas of the rule; both take and return lists."""

    def before(self, gradients: list, weights: list, steps: list) -> list:
        return gradients

    def after(self, deltas: list, gradients: list, weights: list, steps: list) -> list:
        return deltas

    def rates(self, steps: list) -> list:
        """What the learning rate of each variable is multiplied by."""
        return [1.0] * len(steps)

    def patterns(self) -> list[str]:
        return []

    def settle(self, has) -> None:
        """Is given has(pattern, variable) -> bool once the variables are known."""
        self.has = has

    def get_config(self) -> dict:
        arguments = inspect.signature(type(self)).parameters
        return {"name": type(self).__name__, **{name: getattr(self, name) for name in arguments}}


class clip_by_global_norm(Transform):
    """Every g * clip_norm / max(norm, clip_norm), norm = sqrt(sum of |g|^2) over all variables."""

    def __init__(self, clip_norm: float):
        self.clip_norm = ranges.positive("clip_norm", clip_norm)

    def before(self, gradients, weights, steps):
        return clipping.by_global_norm(gradients, self.clip_norm)


class clip_by_value(Transform):
    """Each element moved into [-clip_value, clip_value]."""

    def __init__(self, clip_value: float):
        self.clip_value = ranges.positive("clip_value", clip_value)

    def before(self, gradients, weights, steps):
        return [clipping.by_value(g, self.clip_value) for g in gradients]


class adaptive_gradient_clipping(Transform):
    """g_i * min(1, clipping * max(|w_i|, epsilon) / |g_i|) for every unit i, a slice along the last axis.

    Brock et al., High-Performance Large-Scale Image Recognition Without Normalization (2102.06171), equation 3. Keras
    kernels are output-last, so a unit is one output; a vector is one unit, as in the authors' code and optax. Variables
    whose path matches `exclude` (the paper: the last layer; embeddings) are left alone.
    """

    def __init__(self, clipping: float = 0.01, epsilon: float = 1e-3, exclude: str | None = None):
        self.clipping = ranges.positive("clipping", clipping)
        self.epsilon = ranges.positive("epsilon", epsilon)
        self.exclude = exclude

    def patterns(self):
        return [self.exclude] if self.exclude else []

    def before(self, gradients, weights, steps):
        spared = [bool(self.exclude) and self.has(self.exclude, step.variable) for step in steps]
        each = zip(gradients, weights, spared, strict=True)
        return [g if spare else self._clip(g, w) for g, w, spare in each]

    def _clip(self, g, w):
        limit = self.clipping * ops.maximum(_unit_norm(w), self.epsilon)
        length = _unit_norm(g)
        return ops.where(length > limit, g * (limit / ops.maximum(length, 1e-6)), g)


class centralize_gradients(Transform):
    """g - mean of g over all axes but the last, for kernels of two or more axes; tables of a lazy rule are left alone.

    Yong et al., Gradient Centralization (2004.01461), equation 1. Keras kernels are output-last.
    """

    def before(self, gradients, weights, steps):
        return [self._centre(g) if step.rows is None else g for g, step in zip(gradients, steps, strict=True)]

    def _centre(self, g):
        rank = len(g.shape)
        return g - ops.mean(g, axis=tuple(range(rank - 1)), keepdims=True) if rank > 1 else g


class cautious(Transform):
    """delta * mask * size / (sum(mask) + 1), mask = 1 where the step goes down the present gradient, delta * g < 0.

    Liang et al., Cautious Optimizers (2411.16085), algorithm 1; mask and size are those of one variable. Comes after
    the rule and before decay_weights. Weight decay by AdamW and the like is not masked either; where it is part of the
    rule's own step (SOAP, Muon, Adan, Prodigy, DAdaptAdam) it is.
    """

    def after(self, deltas, gradients, weights, steps):
        return [self._mask(*each) for each in zip(deltas, gradients, steps, strict=True)]

    def _mask(self, delta, g, step):
        mask = ops.cast(delta * g < 0, delta.dtype)
        size = ops.cast(ops.size(delta), delta.dtype)
        if step.rows is not None:
            size = size * ops.cast(sparse.live(step.rows, step.variable) / ops.size(step.rows), delta.dtype)
        return delta * mask * (size / (ops.sum(mask) + 1))


class decay_weights(Transform):
    """delta - rate * weight_decay * w, for variables whose path matches `only` and does not match `exclude`."""

    def __init__(self, weight_decay: float, only: str | None = None, exclude: str | None = None):
        self.weight_decay = ranges.not_negative("weight_decay", weight_decay)
        self.only, self.exclude = only, exclude

    def patterns(self):
        return [pattern for pattern in (self.only, self.exclude) if pattern]

    def after(self, deltas, gradients, weights, steps):
        each = zip(deltas, weights, steps, strict=True)
        return [d - s.rate * self.weight_decay * w if self._decays(s.variable) else d for d, w, s in each]

    def _decays(self, variable) -> bool:
        wanted = self.only is None or self.has(self.only, variable)
        return wanted and not (self.exclude and self.has(self.exclude, variable))


class multiply_learning_rate(Transform):
    """The learning rate of a variable times the factor of the first pattern that its path matches; 1 if none does."""

    def __init__(self, factors: dict[str, float]):
        self.factors = {p: ranges.not_negative(f"factors[{p!r}]", f) for p, f in factors.items()}

    def patterns(self):
        return list(self.factors)

    def rates(self, steps):
        matching = ([f for p, f in self.factors.items() if self.has(p, step.variable)] for step in steps)
        return [factors[0] if factors else 1.0 for factors in matching]


TRANSFORMS = {
    each.__name__: each
    for each in (
        clip_by_global_norm,
        clip_by_value,
        adaptive_gradient_clipping,
        centralize_gradients,
        cautious,
        decay_weights,
        multiply_learning_rate,
    )
}


def from_config(config: dict) -> Transform:
    """The transform that get_config describes. Raises ValueError for a name that is not known."""
    arguments = {name: value for name, value in config.items() if name != "name"}
    if config.get("name") not in TRANSFORMS:
        raise ValueError(f"{config.get('name')!r} is not a transform; there are {', '.join(TRANSFORMS)}.")
    return TRANSFORMS[config["name"]](**arguments)


def _unit_norm(x):
    """The norm of each slice along the last axis, [1, ..., outputs]; of the whole for a vector or a scalar."""
    rank = len(x.shape)
    axes = tuple(range(rank - 1)) if rank > 1 else None
    return ops.sqrt(ops.sum(ops.square(x), axis=axes, keepdims=rank > 1))
