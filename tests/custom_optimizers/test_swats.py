"""SWATS against algorithm 1 of its paper, written out for one long vector."""

import keras
import numpy as np
import pytest

import custom_optimizers as suite
from tests.custom_optimizers import problem
from tests.custom_optimizers.references import RATE

STEPS = 30


def given():
    source = np.random.default_rng(5)
    shapes = list(problem.SHAPES.values())
    start = [source.normal(size=shape) for shape in shapes]
    return start, [[np.float64(np.float32(source.normal(size=shape))) for shape in shapes] for _ in range(STEPS)]


def reference(start, stored, tolerance, rates=None, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
    """(weights after each step, the step at which SGD takes over or None)."""
    w = problem.flat(start)
    m = a = u = np.zeros_like(w)
    average, phase, sgd, left, path = 0.0, "Adam", None, None, []
    for t, row in enumerate(stored, start=1):
        g, rate = problem.flat(row), RATE if rates is None else rates[t - 1]
        if phase == "SGD":
            u = beta_1 * u + g
            w = w - (1 - beta_1) * sgd * rate * u
        else:
            m, a = beta_1 * m + (1 - beta_1) * g, beta_2 * a + (1 - beta_2) * g**2
            p = -rate * m / (1 - beta_1**t) / (np.sqrt(a / (1 - beta_2**t)) + epsilon)
            w = w + p
            if np.dot(p, g) != 0:
                gamma = np.dot(p, p) / -np.dot(p, g)
                average = beta_2 * average + (1 - beta_2) * gamma
                unbiased = average / (1 - beta_2**t)
                if t > 1 and abs(unbiased - gamma) < tolerance * unbiased:
                    phase, sgd, left = "SGD", unbiased / rate, t
        path.append(w)
    return path, left


def run(optimizer, start, stored, dtype="float64"):
    variables = [keras.Variable(weight, dtype=dtype) for weight in start]
    path, switched = [], []
    for row in stored:
        path += problem.descend(optimizer, variables, [row], dtype)
        switched.append(optimizer.switched)
    return path, switched


@pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-10), ("float32", 2e-5)])
@pytest.mark.parametrize("tolerance", [1e-12, 0.1, 0.5])
def test_weights_and_the_switch_are_those_of_algorithm_1(tolerance, dtype, near):
    start, stored = given()
    path, switched = run(suite.SWATS(RATE, tolerance=tolerance), start, stored, dtype)
    expected, left = reference(start, stored, tolerance)
    assert (left is None) == (tolerance == 1e-12)
    assert left is None or 1 < left < STEPS - 5
    assert switched == [left is not None and t >= left for t in range(1, STEPS + 1)]
    for step, (ours, theirs) in enumerate(zip(path, expected, strict=True), start=1):
        assert problem.far(ours, theirs) < near, f"after step {step}"


def test_the_step_of_the_switch_does_not_depend_on_the_size_of_the_rate():
    start, stored = given()
    switches = [run(suite.SWATS(rate, tolerance=0.1), start, stored)[1] for rate in (1e-5, RATE, 100.0)]
    assert any(switches[0])
    assert switches[0] == switches[1] == switches[2]


def test_float32_can_switch_at_the_default_tolerance():
    """An even gradient settles the rate at once, up to rounding; the paper's 1e-9 would not see it."""
    start = [np.zeros(3)]
    stored = [[np.array([3.0, -1.0, 2.0])]] * 4
    assert run(suite.SWATS(1.0), start, stored, "float32")[1] == [False, True, True, True]
    assert run(suite.SWATS(1.0, tolerance=1e-12), start, stored, "float32")[1] == [False] * 4


def test_a_schedule_goes_on_after_the_switch():
    start, stored = given()
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([19, 24], [0.5, 0.25, 0.125])
    rates = [float(schedule(step)) for step in range(STEPS)]
    path, switched = run(suite.SWATS(schedule, tolerance=0.5), start, stored)
    expected, left = reference(start, stored, 0.5, rates)
    assert left < 20
    assert switched[-1]
    assert problem.far(path, expected) < 1e-10
    assert rates[left] > rates[-1]


def test_gradients_of_zero_and_a_rate_of_zero_do_not_switch():
    start, stored = given()
    zeros = [[np.zeros_like(g) for g in stored[0]]] * 3
    path, switched = run(suite.SWATS(RATE, tolerance=100.0), start, zeros)
    assert not any(switched)
    assert problem.far(path, [start] * 3) == 0
    assert not any(run(suite.SWATS(0.0, tolerance=100.0), start, stored[:3])[1])
