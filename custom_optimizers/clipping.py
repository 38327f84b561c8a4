"""Clipping of gradients that are already summed over replicas and rows."""

import math

from keras import ops

from custom_optimizers import sparse


def norm(gradients: list):
    """The global norm sqrt(sum of |g|^2), a float32 scalar (float64 if every gradient is)."""
    kind = "float64" if all(g.dtype == "float64" for g in gradients) else "float32"
    squares = [ops.cast(ops.sum(ops.square(g)), kind) for g in gradients]
    return ops.sqrt(sum(squares[1:], squares[0]))


def global_norm(gradients: list):
    """`norm` of gradients as a tape gives them: repeated rows of sparse ones are summed first."""
    return norm([sparse.summed(g, True, (0,))[1] for g in gradients if g is not None])


def by_norm(gradient, limit: float):
    """g * limit / max(|g|, limit)."""
    length = ops.sqrt(ops.sum(ops.square(gradient)))
    return gradient * (limit / ops.maximum(length, limit))


def by_global_norm(gradients: list, limit: float) -> list:
    """Every g * limit / max(norm, limit), with the one norm of all."""
    factor = limit / ops.maximum(norm(gradients), limit)
    return [g * ops.cast(factor, g.dtype) for g in gradients]


def by_value(gradient, limit: float):
    """g with each element moved into [-limit, limit]. NaN stays NaN."""
    return ops.clip(gradient, -limit, limit)


def clips(*limits: float | None) -> bool:
    """Whether any of the limits is one. Infinity is none."""
    return any(limit and math.isfinite(limit) for limit in limits)


def clipped(gradients: list, each: float | None, together: float | None, value: float | None) -> list:
    """The one of Keras' three clippings that is set: clipnorm, global_clipnorm or clipvalue. Infinity is none."""
    if each and clips(each):
        return [by_norm(g, each) for g in gradients]
    if together and clips(together):
        return by_global_norm(gradients, together)
    if value and clips(value):
        return [by_value(g, value) for g in gradients]
    return gradients
