"""What single rules promise beyond their trajectory: exclusions, schedules of momentum, exact zeros, first updates."""

import decimal
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers as suite
from custom_optimizers import radam
from tests.custom_optimizers import problem, references

DECAYING = {
    "Adan": (lambda decay: suite.Adan(references.RATE, weight_decay=decay)),
    "LARS": (lambda decay: suite.LARS(references.RATE, weight_decay=decay)),
}


def run(optimizer, stored):
    variables = problem.variables(dtype="float64")
    return problem.descend(optimizer, variables, stored, "float64")[-1]


@pytest.mark.parametrize("make", DECAYING.values(), ids=DECAYING)
def test_rules_with_a_decay_of_their_own_spare_excluded_variables(make):
    stored = problem.gradients()
    optimizer = make(0.5)
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    spared, decayed, bare = run(optimizer, stored), run(make(0.5), stored), run(make(0.0), stored)
    for name, ours, with_decay, without in zip(problem.SHAPES, spared, decayed, bare, strict=True):
        assert np.array_equal(ours, without if name == "kernel" else with_decay), name
    assert not np.array_equal(decayed[1], bare[1])


@pytest.mark.parametrize("adapt_vectors", [False, True])
def test_lars_leaves_vectors_to_momentum_unless_told(adapt_vectors):
    stored = problem.gradients()
    lars = run(suite.LARS(0.1, weight_decay=0.5, adapt_vectors=adapt_vectors), stored)
    momentum = run(suite.Momentum(0.1, lazy=False), stored)
    same = [np.allclose(ours, theirs, atol=1e-12) for ours, theirs in zip(lars, momentum, strict=True)]
    assert same == [False, False, False, not adapt_vectors, not adapt_vectors]


def test_lars_moves_weights_that_are_zero():
    weights = keras.Variable(np.zeros((2, 2)), dtype="float64")
    suite.LARS(0.5, momentum=0.0).apply([tf.ones((2, 2), "float64")], [weights])
    assert np.array_equal(problem.values([weights])[0], np.full((2, 2), -0.5))


def test_lars_does_not_see_the_scale_of_gradients_without_decay():
    stored = problem.gradients(shapes={"table": (problem.ROWS, 2)})
    larger = [[(ids, 1000 * slices)] for ((ids, slices),) in stored]
    paths = []
    for each in (stored, larger):
        variables = problem.variables({"table": (problem.ROWS, 2)}, "float64")
        paths.append(problem.descend(suite.LARS(10.0, weight_decay=0.0), variables, each, "float64"))
    assert problem.far(*paths) < 1e-12


def test_the_first_update_of_adopt_moves_nothing_but_decay():
    first = problem.gradients(steps=1)
    start = problem.values(problem.variables(dtype="float64"))
    assert problem.far(run(suite.ADOPT(0.5), first), start) == 0.0
    assert problem.far(run(suite.ADOPT(0.5, weight_decay=0.5), first), [0.75 * w for w in start]) < 1e-15


def test_a_schedule_of_momentum_counts_updates_and_not_mini_batches():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [0.9, 0.5, 0.1])
    stored = [row[1:] for row in problem.gradients(steps=6)]  # dense ones only
    start = problem.values(problem.variables(dtype="float64"))[1:]
    means = [[(a + b) / 2 for a, b in zip(*pair, strict=True)] for pair in zip(stored[::2], stored[1::2], strict=True)]
    momenta = [float(np.float32(mu)) for mu in (0.9, 0.5, 0.1)]
    path, _ = references.by_array(references.momentum([references.RATE] * 3, momenta))(start, means)
    variables = problem.variables(dtype="float64")[1:]
    optimizer = suite.Momentum(references.RATE, schedule, gradient_accumulation_steps=2)
    assert problem.far(problem.descend(optimizer, variables, stored, "float64")[1::2], path) < 1e-12


def test_a_schedule_of_momentum_is_kept_in_the_config_as_json():
    optimizer = suite.Momentum(0.1, suite.OneCycle(0.1, 30).momentum(0.8, 0.9))
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    again = keras.optimizers.deserialize(config)
    assert [float(again.momentum(t)) for t in range(30)] == [float(optimizer.momentum(t)) for t in range(30)]
    plain = suite.Momentum.from_config(json.loads(json.dumps(optimizer.get_config())))
    assert plain.momentum.get_config() == optimizer.momentum.get_config()


@pytest.mark.parametrize(
    ("make", "moves"),
    [
        (lambda: suite.Momentum(0.1), False),
        (lambda: suite.Momentum(0.1, lazy=False), True),
        (lambda: suite.SGD(0.1), False),
        (lambda: suite.SGD(0.1, 0.9), True),
    ],
    ids=["Momentum", "Momentum of all rows", "SGD", "SGD with momentum"],
)
def test_momentum_moves_rows_that_are_absent_unless_it_is_lazy(make, moves):
    table = {"table": (problem.ROWS, 2)}
    variables = problem.variables(table, "float64")
    before, after = problem.descend(make(), variables, problem.gradients(ids=[[0], [1]], shapes=table), "float64")
    assert np.array_equal(before[0][0], after[0][0]) is not moves


def test_sgd_without_momentum_has_no_state():
    optimizer = problem.built(suite.SGD(0.1), problem.variables())
    assert [variable.path.split("/")[-1] for variable in optimizer.variables] == ["iteration", "learning_rate"]


def test_ftrl_makes_weights_of_weak_features_exactly_zero():
    weights = keras.Variable(np.zeros(3), dtype="float32")
    optimizer = suite.Ftrl(0.1, l1_regularization_strength=1.0)
    for _ in range(20):
        optimizer.apply([tf.constant([0.01, -0.01, 1.0])], [weights])
    weak, other, strong = problem.values([weights])[0]
    assert weak == 0.0
    assert other == 0.0
    assert strong < 0


@pytest.mark.parametrize("beta_2", [0.65, 0.9, 0.99, 0.999, 0.9999])
def test_radam_counts_gradients_to_the_last_digits_of_float32(beta_2):
    counts = [1, 2, 4, 5, 6, 30, 99, 101, 1000, 10**4, 10**6]
    with decimal.localcontext(prec=60):
        exact, beta = [], decimal.Decimal(beta_2)
        for t in counts:
            exact.append(float(2 / (1 - beta) - 1 - 2 * t * beta**t / (1 - beta**t)))
    for dtype, near in {"float32": 3e-6, "float64": 1e-11}.items():
        found = keras.ops.convert_to_numpy(radam.length(tf.constant(counts, dtype), beta_2))
        np.testing.assert_allclose(found, exact, rtol=near)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: suite.AdEMAMix(beta_3=0.0), "beta_3"),
        (lambda: suite.AdEMAMix(alpha=-1.0), "alpha"),
        (lambda: suite.AdEMAMix(beta_3_warmup=0), "beta_3_warmup"),
        (lambda: suite.Adan(beta_3=1.0), "beta_3"),
        (lambda: suite.ADOPT(epsilon=0.0), "epsilon"),
        (lambda: suite.RAdam(beta_2=1.0), "beta_2"),
        (lambda: suite.LARS(trust_coefficient=0.0), "trust_coefficient"),
        (lambda: suite.MARS(gamma=-0.1), "gamma"),
        (lambda: suite.Momentum(momentum=1.0), "momentum"),
        (lambda: suite.SGD(-1.0), "learning_rate"),
        (lambda: suite.Ftrl(learning_rate_power=0.5), "learning_rate_power"),
        (lambda: suite.Ftrl(initial_accumulator_value=0.0), "initial_accumulator_value"),
    ],
)
def test_an_argument_out_of_range_is_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()
