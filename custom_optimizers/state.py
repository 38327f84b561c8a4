"""What an optimizer keeps beside the variables it moves, and what a rule is told of one update."""

import dataclasses
from typing import Any

import keras
from keras import ops


@dataclasses.dataclass(frozen=True)
class Slot:
    """State beside a variable: its first value (a number, or "weights": a copy of them) and shape (None: the same)."""

    initial: float | str = 0.0
    shape: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """What a rule may know about the update of one variable beside the tensors themselves."""

    t: Any  # the number of this update, from 1, a scalar in the dtype of the arithmetic
    rate: Any  # the learning rate of the variable, a scalar of the same dtype
    base: Any  # the learning rate of the optimizer: the same for all variables
    variable: Any  # the variable: its shape and path, never its value
    rows: Any = None  # [n] which rows the tensors hold, None when they hold all


class State:
    """The variables of an optimizer by what they are for. Not a list or dict, so Keras does not track them twice."""

    def __init__(self, slots, shared, touched):
        self.slots, self.shared, self.touched = slots, shared, touched


def constant(value):
    """keras.initializers.Constant would round a number to float32, also for a float64 variable. Names stay names."""
    return value if isinstance(value, str) else lambda shape, dtype: ops.full(shape, value, dtype)


def dtype_of(variable) -> str:
    return keras.backend.standardize_dtype(variable.dtype)


def arithmetic(variable) -> str:
    """The dtype of a variable's state and of the arithmetic of its updates."""
    return "float32" if dtype_of(variable) in ("float16", "bfloat16") else dtype_of(variable)


def path(variable) -> str:
    return getattr(variable, "path", variable.name)
