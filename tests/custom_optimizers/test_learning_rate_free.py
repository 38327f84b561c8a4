"""Prodigy and D-Adapt Adam: against optax where it can say the same, else against slow rules from the papers."""

import functools
import itertools

import keras
import numpy as np
import optax
import pytest

import custom_optimizers as suite
from tests.custom_optimizers import problem
from tests.custom_optimizers.references import by_optax

STEPS = 30
NEAR = {"float64": 1e-10, "float32": 2e-5}
WARM = keras.optimizers.schedules.PolynomialDecay(0.0, 10, 1.0)  # from 0 to 1


def given(shapes=None):
    """First weights and gradients that keep a direction, so that d grows; in numbers that float32 holds."""
    source = np.random.default_rng(4)
    shapes = list((shapes or problem.SHAPES).values())
    trends = [source.normal(size=shape) for shape in shapes]
    start = [rounded(source.normal(size=shape)) for shape in shapes]
    return start, [[rounded(trend + source.normal(size=trend.shape)) for trend in trends] for _ in range(STEPS)]


@functools.cache
def expected(reference):
    return reference(*given())


def rounded(array):
    return np.float64(np.float32(array))


def run(optimizer, start, stored, dtype="float64"):
    """The weights and d after each step."""
    variables = [keras.Variable(weight, dtype=dtype) for weight in start]
    path, sizes = [], []
    for row in stored:
        path += problem.descend(optimizer, variables, [row], dtype)
        sizes.append(float(optimizer._state.shared["d"]))
    return path, sizes


def growing(d, d_hat, d_max, d0, growth):
    if growth is None:
        return max(d, d_hat), max(d_max, d_hat)
    d_max = max(d_max, d_hat)
    return min(d_max, (max(d, d_hat) if d == d0 else d) * growth), d_max


def prodigy(decay=0.0, d0=1e-6, d_coef=1.0, growth=None, beta_3=None, rate=1.0, eps=1e-8):
    """The authors' code without bias correction, for one long vector of all weights."""

    def follow(start, stored):
        w0 = w = problem.flat(start)
        m = v = s = np.zeros_like(w)
        d = d_max = d0
        r, path, b3 = 0.0, [], 0.999**0.5 if beta_3 is None else beta_3
        for row in stored:
            g = problem.flat(row)
            r = b3 * r + d / d0 * d * rate * np.dot(g, w0 - w)
            s = b3 * s + d / d0 * d * rate * g
            m, v = 0.9 * m + 0.1 * d * g, 0.999 * v + 0.001 * (d * g) ** 2
            new, d_max = growing(d, d_coef * r / np.sum(np.abs(s)), d_max, d0, growth)
            w = w - rate * d * (m / (np.sqrt(v) + new * eps) + decay * w)
            d = new
            path.append(w)
        return path, []

    return follow


def d_adapt(decay=0.0, d0=1e-6, growth=None, rate=1.0, eps=1e-8):
    def follow(start, stored):
        w = problem.flat(start)
        m = v = s = np.zeros_like(w)
        d, r, path, b = d0, 0.0, [], 0.999**0.5
        for row in stored:
            g = problem.flat(row)
            step = d * rate
            r = b * r + (1 - b) * step * np.dot(g, s / (np.sqrt(v) + eps))
            m, v, s = 0.9 * m + 0.1 * step * g, 0.999 * v + 0.001 * g**2, b * s + (1 - b) * step * g
            w = w - m / (np.sqrt(v) + eps) - step * decay * w
            d_hat = r / ((1 - b) * np.sum(np.abs(s)))
            d = max(d, d_hat if growth is None else min(d_hat, d * growth))
            path.append(w)
        return path, []

    return follow


BIASED = {"use_bias_correction": True}  # optax always corrects, the authors' code by default does not
CASES = {
    "Prodigy": (lambda: suite.Prodigy(**BIASED), by_optax(lambda: optax.contrib.prodigy())),
    "Prodigy, decay and settings": (
        lambda: suite.Prodigy(0.5, 0.8, 0.99, 0.97, 1e-6, 0.1, 1e-4, 2.0, **BIASED),
        by_optax(lambda: optax.contrib.prodigy(0.5, (0.8, 0.99), 0.97, 1e-6, 1e-4, 2.0, 0.1)),
    ),
    "Prodigy, warm-up from 0": (
        lambda: suite.Prodigy(WARM, d_coef=8.0, safeguard_warmup=True, **BIASED),
        by_optax(
            lambda: optax.contrib.prodigy(optax.linear_schedule(0.0, 1.0, 10), estim_lr_coef=8.0, safeguard_warmup=True)
        ),
    ),
    "Prodigy without bias correction": (lambda: suite.Prodigy(0.1, weight_decay=0.1), prodigy(0.1, rate=0.1)),
    "Prodigy, slow growth": (
        lambda: suite.Prodigy(0.5, d_coef=2.0, d0=1e-4, growth_rate=1.3),
        prodigy(d_coef=2.0, d0=1e-4, growth=1.3, rate=0.5),
    ),
    "DAdaptAdam": (lambda: suite.DAdaptAdam(**BIASED), by_optax(lambda: optax.contrib.dadapt_adamw())),
    "DAdaptAdam, decay and settings": (
        lambda: suite.DAdaptAdam(0.5, 0.8, 0.99, 1e-6, 0.1, 1e-4, **BIASED),
        by_optax(lambda: optax.contrib.dadapt_adamw(0.5, (0.8, 0.99), 1e-6, 1e-4, 0.1)),
    ),
    "DAdaptAdam without bias correction": (lambda: suite.DAdaptAdam(weight_decay=0.1), d_adapt(0.1)),
    "DAdaptAdam, slow growth": (lambda: suite.DAdaptAdam(0.5, growth_rate=1.1), d_adapt(growth=1.1, rate=0.5)),
}
RULES = {"Prodigy": suite.Prodigy, "DAdaptAdam": suite.DAdaptAdam}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_weights_are_those_of_the_reference_after_every_step(case, dtype):
    make, reference = case
    start, stored = given()
    path, sizes = run(make(), start, stored, dtype)
    for step, (ours, theirs) in enumerate(zip(path, expected(reference)[0], strict=True), start=1):
        assert problem.far(ours, theirs) < NEAR[dtype], f"after step {step}"
    assert sizes[-1] > 5 * sizes[0]  # d was found, not left where it began


@each_rule
def test_one_d_serves_all_variables(rule):
    """The same numbers in one variable or in two: only sums over all variables make no difference."""
    start, stored = given({"kernel": (6,)})
    one, sizes = run(rule(weight_decay=0.1), start, stored)
    two, parts = run(rule(weight_decay=0.1), split(start), [split(row) for row in stored])
    assert problem.far(two, one) < 1e-10
    np.testing.assert_allclose(parts, sizes, rtol=1e-10)
    alone, own = run(rule(weight_decay=0.1), split(start)[:1], [split(row)[:1] for row in stored])
    assert abs(own[-1] / sizes[-1] - 1) > 0.01
    assert problem.far(alone, [row[:1] for row in two]) > 1e-6


def split(arrays):
    (array,) = arrays
    return [array[:2], array[2:]]


@each_rule
def test_d_never_falls_and_grows_no_faster_than_it_may(rule):
    start, stored = given()
    for growth in (None, 1.2):
        sizes = run(rule(growth_rate=growth, d0=1e-4), start, stored)[1]
        ratios = [after / before for before, after in itertools.pairwise(sizes)]
        assert min(ratios) >= 1
        left = [
            ratio for ratio, before in zip(ratios, sizes, strict=False) if before > 1.001e-4
        ]  # the first jump is free
        assert (max(left) > 1.2 + 1e-9) == (growth is None)
        assert max(left) > 1.1


@each_rule
def test_gradients_of_zero_move_nothing_and_spoil_nothing(rule):
    start, stored = given()
    zeros = [[np.zeros_like(g) for g in stored[0]]] * 2
    path, sizes = run(rule(), start, zeros)
    assert problem.far(path, [start] * 2) == 0
    assert sizes == pytest.approx([1e-6] * 2)
    path, sizes = run(rule(), start, zeros + stored)
    assert np.all(np.isfinite(problem.flat(path)))
    assert sizes[-1] > 1e-5


@each_rule
def test_growth_of_one_or_less_is_refused(rule):
    with pytest.raises(ValueError, match="growth_rate"):
        rule(growth_rate=1.0)
