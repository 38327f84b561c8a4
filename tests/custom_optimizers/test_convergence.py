"""Every optimizer descends: on a quadratic with a condition number, and down Rosenbrock's valley, from five starts."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.custom_optimizers import problem
from tests.custom_optimizers.suite import each

SEEDS = 5
SHAPES = {"kernel": (4, 3), "bias": (3,)}
# The share of the first loss that may be left, of the worst of five seeds.
QUADRATIC = 0.02
CENTRED = 0.5  # the mean of each output's weights stays where it was
QUADRATIC_BUT = {"chain": CENTRED}
ROSENBROCK = 0.1
ROSENBROCK_BUT = {"chain": CENTRED}
ROSENBROCK_RATES = {"ScheduleFreeSGD": 0.1}  # gradient descent diverges above 2 / curvature, which is 10 here


def quadratic(kernel, bias):
    """Curvatures from 1 to 30 and a minimum off the origin."""
    curvature = tf.constant(np.geomspace(1, 30, 12).reshape(4, 3), "float32")
    return tf.reduce_sum(curvature * tf.square(kernel - 0.3)) / 2 + tf.reduce_sum(tf.square(bias + 0.2)) * 5


def rosenbrock(kernel, bias):
    """Six valleys (a, b), a of the kernel's first rows and b of its last; a curved floor with the minimum at (1, 1)."""
    a, b = kernel[:2], kernel[2:]
    valleys = tf.reduce_sum(tf.square(1 - a) + 10 * tf.square(b - tf.square(a)))
    return (valleys + tf.reduce_sum(tf.square(bias - 1))) / 10


def left_over(case, loss, steps, rate=None, seeds=SEEDS) -> list[float]:
    """The last loss at the weights to evaluate over the first one, for each seed; all steps in one traced loop."""
    variables = problem.variables(SHAPES)
    optimizer = problem.built(case.make(), variables)
    if rate is not None:
        optimizer.learning_rate = rate
    blank = [np.array(variable) for variable in optimizer.variables]

    def step(count):
        weights = [variable.value for variable in variables]
        with tf.GradientTape() as tape:
            value = loss(*weights)
        optimizer.apply(tape.gradient(value, weights), variables)
        return count + 1

    @functools.partial(tf.function, autograph=False)
    def train():
        tf.while_loop(lambda count: count < steps, step, [tf.constant(0)])

    shares = []
    for seed in range(seeds):
        source = np.random.default_rng(seed)
        for variable in variables:
            variable.assign(source.uniform(-1.0, 1.0, variable.shape))
        for variable, first in zip(optimizer.variables, blank, strict=True):
            variable.assign(first)
        before = float(loss(*[variable.value for variable in variables]))
        train()
        shares.append(float(loss(*optimizer.evaluation_values(variables))) / before)
    return shares


@pytest.mark.parametrize("seeds", [1, pytest.param(SEEDS, marks=pytest.mark.slow)])
@pytest.mark.parametrize(**each)
def test_a_quadratic_is_descended(case, seeds):
    assert max(left_over(case, quadratic, 200, seeds=seeds)) < QUADRATIC_BUT.get(case.name, QUADRATIC)


@pytest.mark.slow
@pytest.mark.parametrize(**each)
def test_the_valley_of_rosenbrock_is_descended(case):
    left = left_over(case, rosenbrock, 1000, ROSENBROCK_RATES.get(case.name))
    assert max(left) < ROSENBROCK_BUT.get(case.name, ROSENBROCK)
