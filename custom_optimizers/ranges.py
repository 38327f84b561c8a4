"""Accepted ranges of hyper-parameters: a function a range, value in, value out, ValueError with name and range."""

import math
import numbers


def _number(name: str, value, accepted: str, holds) -> float:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} must be {accepted}, got {value!r}.")
    return float(value)


def positive(name: str, value) -> float:
    return _number(name, value, "a number above 0", lambda v: v > 0)


def limit(name: str, value) -> float:
    """Where something is cut off: above 0, and infinity to cut nothing."""
    return math.inf if value == math.inf else positive(name, value)


def not_negative(name: str, value) -> float:
    return _number(name, value, "a number of 0 or above", lambda v: v >= 0)


def not_positive(name: str, value) -> float:
    return _number(name, value, "a number of 0 or below", lambda v: v <= 0)


def fraction(name: str, value) -> float:
    """What a decay rate of a moving average may be: [0, 1)."""
    return _number(name, value, "in [0, 1)", lambda v: 0 <= v < 1)


def share(name: str, value) -> float:
    """What an interpolation weight may be: [0, 1]."""
    return _number(name, value, "in [0, 1]", lambda v: 0 <= v <= 1)


def whole(name: str, value, least: int = 1) -> int:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise ValueError(f"{name} must be a whole number of {least} or above, got {value!r}.")
    return int(value)


def one_of(name: str, value, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
    return value


def optional(check, name: str, value, **limits):
    """`check` applied to anything but None."""
    return None if value is None else check(name, value, **limits)
