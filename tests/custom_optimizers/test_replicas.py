"""Two replicas that share a batch do what one does with all of it: the same weights, state and loss scale."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers as suite
from tests.custom_optimizers import problem
from tests.custom_optimizers.suite import Case, each

NEAR = 1e-9  # sums in another order, in float64
OPTIONS = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.1},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "clipvalue": {"clipvalue": 0.2},
    "accumulation": {"gradient_accumulation_steps": 2},
    "average": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
}
ALL = {"gradient_accumulation_steps": 2, "global_clipnorm": 0.1, **OPTIONS["average"]}
LAZY = Case("LazyAdamW", lambda **o: suite.LazyAdamW(0.05, weight_decay=0.01, **o))
CLIPPING = Case("clipping", lambda **o: suite.chain(suite.adaptive_gradient_clipping(0.05), suite.Adam(0.05, **o)))


@functools.cache
def two_replicas():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())


def run(case, strategy, batches, options=None, scaled=False, start=32.0):
    """(weights after each step, state after the last, loss scale after each), with a traced step on replicas."""
    with strategy.scope():
        variables = problem.variables(problem.TRAINED, "float64")
        optimizer = case.make(**(options or {}))
        if scaled:
            optimizer = suite.LossScaleOptimizer(optimizer, initial_scale=start)
        optimizer.build(variables)

    def step(batch):
        strategy.run(functools.partial(problem.train_step, optimizer, variables), args=batch)

    replicas = strategy.num_replicas_in_sync
    if replicas > 1:
        step = tf.function(step, autograph=False)
    path, scales = [], []
    for batch in batches:
        step(shared_out(strategy, batch) if replicas > 1 else tuple(tf.constant(part) for part in batch))
        path.append(problem.values(variables))
        scales.append(float(optimizer.dynamic_scale.numpy()) if scaled else None)
    assert_alike(variables + optimizer.variables)
    state = [value for value in problem.values(optimizer.variables) if value.dtype.kind == "f"]
    return path, state, scales


def shared_out(strategy, batch):
    """Each replica's half of a batch."""
    half = problem.BATCH // 2

    def part(context, array):
        start = context.replica_id_in_sync_group * half
        return tf.constant(array[start : start + half])

    return tuple(
        strategy.experimental_distribute_values_from_function(functools.partial(part, array=array)) for array in batch
    )


def assert_alike(variables):
    for variable in variables:
        copies = [copy.numpy() for copy in getattr(variable.value, "values", [])]
        assert all(np.array_equal(copy, copies[0]) for copy in copies), f"{variable.path} differs between replicas"


def assert_same(case, batches, options, scaled=False):
    path, state, scales = run(case, two_replicas(), batches, options, scaled)
    expected, expected_state, expected_scales = run(case, tf.distribute.get_strategy(), batches, options, scaled)
    assert problem.far(path, expected) < NEAR
    assert problem.far(state, expected_state) < NEAR
    assert scales == expected_scales
    return path, scales


def overflowing(batches, step, example):
    """The same batches with an infinite input in one example of one step."""
    batches = [tuple(np.array(part) for part in batch) for batch in batches]
    batches[step][1][example] = np.inf
    return batches


@pytest.mark.parametrize(**each)
def test_an_overflow_on_the_last_replica_skips_the_step_on_all_and_halves_the_scale_once(case):
    """And all else is as on one replica; with accumulation, clipping and averaging, the overflow inside a window."""
    path, scales = assert_same(case, overflowing(problem.batches(7), 3, -1), ALL, scaled=True)
    assert scales == [32.0] * 3 + [16.0] * 4
    assert problem.far(path[3], path[2]) == 0  # the skipped one
    assert problem.far(path[4], path[3]) > 0  # ends the window instead
    assert problem.far(path[6], path[5]) > 0


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_two_replicas_equal_one_with_each_option(options):
    assert_same(LAZY, problem.batches(4), options)


def test_two_replicas_equal_one_with_adaptive_clipping():
    assert_same(CLIPPING, problem.batches(4), {})


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(**each)
def test_two_replicas_equal_one_for_every_rule_with_each_option(case, options):
    assert_same(case, problem.batches(4), options)


@pytest.mark.parametrize("example", [0, -1], ids=["first replica", "last replica"])
def test_an_overflow_anywhere_skips_the_step(example):
    path, scales = assert_same(LAZY, overflowing(problem.batches(3), 1, example), {}, scaled=True)
    assert scales == [32.0, 16.0, 16.0]
    assert problem.far(path[1], path[0]) == 0
    assert problem.far(path[2], path[1]) > 0


def fitted(case, strategy, options):
    """The weights, and the weights to evaluate, of a small model that fit has trained."""
    source = np.random.default_rng(0)
    ids, labels = source.integers(0, 5, (48, 3)), source.normal(size=(48, 1)).astype("float32")
    ids[::4] = 2  # in the half of either replica
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [suite.SparseEmbedding(problem.ROWS, 2, name="table"), keras.layers.Flatten(), keras.layers.Dense(1)]
        )
        model.build((None, 3))
        model.compile(case.make(**options), loss="mse", jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices((ids, labels)).batch(8)
    model.fit(data, epochs=2, shuffle=False, verbose=0)
    return problem.values(model.trainable_variables)


def assert_fits_alike(case, options):
    two = fitted(case, two_replicas(), options)
    assert problem.far(two, fitted(case, tf.distribute.get_strategy(), options)) < 1e-5


def test_fit_on_two_replicas_equals_fit_on_one():
    assert_fits_alike(LAZY, ALL)


@pytest.mark.slow
@pytest.mark.parametrize(**each)
def test_fit_on_two_replicas_equals_fit_on_one_for_every_rule(case):
    assert_fits_alike(case, {})
    assert_fits_alike(case, ALL)


def test_apply_outside_a_replica_is_refused():
    with two_replicas().scope():
        variables = problem.variables(problem.SMALL)
        optimizer = problem.built(suite.Adam(0.1), variables)
        with pytest.raises(ValueError, match="given to strategy"):
            problem.descend(optimizer, variables, problem.gradients(1, problem.SMALL))
