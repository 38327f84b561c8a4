"""The same trajectory however an update is run: eager, traced, compiled, scaled, or in several mini-batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.custom_optimizers import problem
from tests.custom_optimizers.suite import CASES, each

NEAR = 1e-6
OPTIONS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "average": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.3},
    "all": {"gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 2, "clipnorm": 0.5},
}
SHAPES = {"table": (problem.ROWS, 2), "conv": (2, 2, 1, 3), "bias": (3,)}  # few: compilation takes the time
LAZY = [case for case in CASES if case.make().lazy]


def run(case, mode, stored, options=None, dtype="float32"):
    """The weights after each step of a sparse table and dense others, updated in one function of that mode."""
    variables = problem.variables(SHAPES, dtype)
    optimizer = problem.built(case.make(**(options or {})), variables)

    def apply(ids, slices, *others):
        table = tf.IndexedSlices(slices, ids, (problem.ROWS, 2))
        optimizer.apply([table, *others], variables)

    if mode != "eager":
        apply = tf.function(
            apply, jit_compile=mode == "jit", autograph=False, input_signature=signature(mode, stored, dtype)
        )
    path = []
    for (ids, slices), *others in stored:
        apply(tf.constant(ids), tf.constant(slices, dtype), *[tf.constant(other, dtype) for other in others])
        path.append(problem.values(variables))
    return path


def signature(mode, stored, dtype):
    """Of a traced function: one for any number of ids."""
    if mode == "jit":
        return None
    others = [tf.TensorSpec(np.shape(other), dtype) for other in stored[0][1:]]
    return [tf.TensorSpec([None], "int64"), tf.TensorSpec([None, 2], dtype), *others]


COSTLY = ("SOAP", "Shampoo")  # eigenvectors under XLA: their own tests compile them, too
EACH = [pytest.param(c, id=c.name, marks=pytest.mark.slow if c.name in COSTLY else ()) for c in CASES]


@pytest.mark.parametrize("case", EACH)
def test_compiled_updates_are_the_eager_ones(case):
    stored = problem.gradients(shapes=SHAPES)
    assert problem.far(run(case, "jit", stored), run(case, "eager", stored)) < NEAR


@pytest.mark.parametrize("case", LAZY, ids=[case.name for case in LAZY])
def test_one_traced_update_takes_any_number_of_ids(case):
    """Of the other rules traced updates are compared with eager ones where replicas are."""
    stored = problem.gradients(shapes=SHAPES, ids=[[4, 0, 4], [1], [], [5, 5, 0, 1, 2, 0]])
    assert problem.far(run(case, "graph", stored), run(case, "eager", stored)) < NEAR


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(**each)
def test_eager_graph_and_compiled_updates_are_the_same_with_each_option(case, options):
    stored = problem.gradients(shapes=SHAPES)
    eager = run(case, "eager", stored, options)
    assert problem.far(run(case, "graph", stored, options), eager) < NEAR
    assert problem.far(run(case, "jit", stored, options), eager) < NEAR


@pytest.mark.parametrize(**each)
def test_a_loss_scale_of_a_power_of_two_changes_no_bit(case):
    stored = problem.gradients(shapes=problem.SMALL)
    paths = []
    for scale in (None, 1024.0):
        variables = problem.variables(problem.SMALL)
        optimizer = problem.built(case.make(loss_scale_factor=scale), variables)
        assert float(optimizer.scale_loss(1.0)) == (scale or 1.0)
        scaled = [[times(gradient, scale or 1.0) for gradient in row] for row in stored]
        paths.append(problem.descend(optimizer, variables, scaled))
    assert problem.far(*paths) == 0


@pytest.mark.parametrize(**each)
def test_two_accumulated_mini_batches_are_one_of_twice_the_size(case):
    """To the learning rate's schedule and to the average as well."""
    stored = problem.gradients(steps=6, shapes=problem.SMALL)
    joined = [[mean(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(stored[::2], stored[1::2], strict=True)]
    average = dict(use_ema=True, ema_momentum=0.5)
    paths, averages = [], []
    for gradients, options in ((joined, average), (stored, {**average, "gradient_accumulation_steps": 2})):
        variables = problem.variables(problem.SMALL, dtype="float64")
        optimizer = problem.built(case.make(**options), variables)
        optimizer.learning_rate = keras.optimizers.schedules.InverseTimeDecay(0.1, 1, 1.0)
        paths.append(problem.descend(optimizer, variables, gradients, "float64"))
        averages.append(optimizer.evaluation_values(variables))
        assert int(optimizer.iterations) == 3
    whole, parts = paths
    assert problem.far(parts[1::2], whole) < 1e-9
    assert problem.far(parts[2::2], whole[:-1]) < 1e-9  # the first mini-batch of a window moves nothing
    assert problem.far(averages[1], averages[0]) < 1e-9  # the average moves once an update, not once a mini-batch


@pytest.mark.parametrize(**each)
def test_clipping_at_infinity_changes_no_bit(case):
    stored = problem.gradients(shapes=problem.SMALL)
    paths = []
    for options in ({}, {"clipnorm": np.inf}, {"clipvalue": np.inf}, {"global_clipnorm": np.inf}, {"clipnorm": 1e30}):
        variables = problem.variables(problem.SMALL)
        paths.append(problem.descend(problem.built(case.make(**options), variables), variables, stored))
    assert all(problem.far(path, paths[0]) == 0 for path in paths[1:-1])
    # A finite limit needs the sum of a row's slices, which plain SGD would else add one by one: it rounds otherwise.
    assert problem.far(paths[-1], paths[0]) <= (1e-6 if case.make().additive else 0)


def times(gradient, factor):
    return (gradient[0], gradient[1] * factor) if isinstance(gradient, tuple) else gradient * factor


def mean(a, b):
    if not isinstance(a, tuple):
        return (a + b) / 2
    return np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]) / 2
