"""Moving averages of gradients and their bias, shared by the rules of the Adam family."""

import math

from keras import ops


def moved(average, value, beta: float):
    """beta * average + (1 - beta) * value."""
    return beta * average + (1 - beta) * value


def debias(beta: float, t):
    """1 - beta^t, to full precision also where beta is close to one and t small (where 1 - beta^t is not)."""
    return -ops.expm1(t * math.log(beta)) if beta else ops.ones_like(t)
