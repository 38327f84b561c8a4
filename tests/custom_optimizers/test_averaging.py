"""The mean of snapshots against a mean taken by hand; training goes on as if nothing were averaged."""

import keras
import numpy as np
import pytest

import custom_optimizers as suite
from tests.custom_optimizers import problem

STEPS = 9
SMALL = problem.SMALL


def inner():
    return suite.AdamW(0.05, weight_decay=0.1)


def run(optimizer, steps=STEPS):
    """(weights, weights to evaluate) after each step."""
    variables = problem.variables(SMALL, dtype="float64")
    path, evaluated = [], []
    for row in problem.gradients(steps, SMALL):
        path += problem.descend(optimizer, variables, [row], "float64")
        evaluated.append(problem.values(optimizer.evaluation_values(variables)))
    return path, evaluated


@pytest.mark.parametrize(
    ("start", "period", "snapshots"),
    [(0, 1, range(1, 10)), (0, 3, [1, 4, 7]), (2, 2, [3, 5, 7, 9]), (4, 10, [5]), (20, 2, [])],
)
def test_the_mean_of_every_period_th_update_from_the_start_on_is_evaluated(start, period, snapshots):
    path, evaluated = run(suite.StochasticWeightAveraging(inner(), start, period))
    for step in range(1, STEPS + 1):
        taken = [path[t - 1] for t in snapshots if t <= step]
        mean = [np.mean(arrays, axis=0) for arrays in zip(*taken, strict=True)] if taken else path[step - 1]
        assert problem.far(evaluated[step - 1], mean) < 1e-12, f"after step {step}"


def test_training_is_that_of_the_inner_optimizer_bit_for_bit():
    def cautious():  # without a fused kernel, which rounds in another order
        return suite.Cautious(inner())

    variables = problem.variables(SMALL, dtype="float64")
    plain = problem.descend(cautious(), variables, problem.gradients(STEPS, SMALL), "float64")
    path, evaluated = run(suite.StochasticWeightAveraging(cautious(), 2, 2))
    assert problem.far(path, plain) == 0
    assert problem.far(evaluated, plain) > 1e-3


def test_the_defaults_are_those_of_tensorflow_addons():
    config = suite.StochasticWeightAveraging(inner()).get_config()
    assert (config["start_averaging"], config["average_period"]) == (0, 10)


def test_what_lookahead_moves_can_be_averaged():
    def ahead():
        return suite.Lookahead(inner(), 2)

    path, evaluated = run(suite.StochasticWeightAveraging(ahead(), 3, 2))
    fast, slow = run(ahead())
    assert problem.far(path, fast) < 1e-14
    assert problem.far(evaluated[:3], slow[:3]) == 0  # until averaging begins, what the inner optimizer evaluates
    mean = [np.mean(arrays, axis=0) for arrays in zip(fast[3], fast[5], fast[7], strict=True)]
    assert problem.far(evaluated[-1], mean) < 1e-12


def test_snapshots_are_taken_inside_the_constraint():
    variables = [keras.Variable(np.ones(3), dtype="float32")]
    variables[0].constraint = keras.constraints.NonNeg()
    optimizer = suite.StochasticWeightAveraging(suite.SGD(1.0), average_period=1)
    for gradient in (np.full(3, 3.0), np.full(3, -1.0)):
        problem.descend(optimizer, variables, [[gradient]])
    assert problem.far(problem.values(optimizer.evaluation_values(variables)), [np.full(3, 0.5)]) < 1e-7


def test_fit_leaves_the_average_in_the_model():
    source = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimizer = suite.StochasticWeightAveraging(suite.SGD(0.1), 2, 1)
    model.compile(optimizer, loss="mse")
    path = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: path.append(problem.values(model.trainable_variables))
    )
    model.fit(source.normal(size=(40, 3)), source.normal(size=(40, 1)), batch_size=8, verbose=0, callbacks=[watch])
    mean = [np.mean(arrays, axis=0) for arrays in zip(*path[2:], strict=True)]
    assert problem.far(problem.values(model.trainable_variables), mean) < 1e-6
    assert problem.far(path[-1], mean) > 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: suite.LazyAdam(0.1),
        lambda: suite.ScheduleFreeAdamW(0.1),
        lambda: suite.StochasticWeightAveraging(suite.Adam(0.1)),
    ],
    ids=["lazy", "two points", "averaged already"],
)
def test_an_inner_optimizer_that_cannot_be_averaged_is_refused(make):
    with pytest.raises(ValueError, match="StochasticWeightAveraging"):
        suite.StochasticWeightAveraging(make())


@pytest.mark.parametrize(("name", "value"), [("start_averaging", -1), ("average_period", 0), ("average_period", 1.5)])
def test_counts_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        suite.StochasticWeightAveraging(inner(), **{name: value})
