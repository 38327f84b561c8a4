"""Lookahead against optax's, and what follows from its definition."""

import copy

import jax
import keras
import numpy as np
import optax
import pytest

import custom_optimizers as suite
from tests.custom_optimizers import problem
from tests.custom_optimizers.references import RATE

STEPS = 30
SMALL = problem.SMALL


def given():
    start = [np.float64(value) for value in problem.values(problem.variables())]
    stored = [[problem.dense(gradient) for gradient in row] for row in problem.gradients(STEPS)]
    return start, [[np.float64(np.float32(gradient)) for gradient in row] for row in stored]


def by_optax(start, stored, **settings):
    """The fast and the slow weights after each step."""
    with jax.enable_x64(True):
        rule = optax.lookahead(optax.adamw(RATE, weight_decay=0.1), **settings)
        weights = optax.LookaheadParams.init_synced([jax.numpy.asarray(weight) for weight in start])
        state, fast, slow = rule.init(weights), [], []

        @jax.jit
        def step(weights, state, gradients):
            updates, state = rule.update(gradients, state, weights)
            return optax.apply_updates(weights, updates), state

        for row in stored:
            weights, state = step(weights, state, [jax.numpy.asarray(gradient) for gradient in row])
            fast.append([np.asarray(weight) for weight in weights.fast])
            slow.append([np.asarray(weight) for weight in weights.slow])
    return fast, slow


@pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-10), ("float32", 2e-5)])
@pytest.mark.parametrize(
    "settings", [{"sync_period": 6, "slow_step_size": 0.5}, {"sync_period": 4, "slow_step_size": 0.2}]
)
def test_fast_and_slow_weights_are_those_of_optax_after_every_step(settings, dtype, near):
    start, stored = given()
    variables = [keras.Variable(weight, dtype=dtype) for weight in start]
    optimizer = suite.Lookahead(suite.AdamW(RATE, 0.1, epsilon=1e-8), **settings)
    fast, slow = by_optax(start, stored, **settings)
    for step, row in enumerate(stored):
        problem.descend(optimizer, variables, [row], dtype)
        assert problem.far(problem.values(variables), fast[step]) < near, f"after step {step + 1}"
        evaluated = problem.values(optimizer.evaluation_values(variables))
        assert problem.far(evaluated, slow[step]) < near, f"after step {step + 1}"


def path(optimizer, steps=7, dtype="float64"):
    variables = problem.variables(SMALL, dtype=dtype)
    return problem.descend(optimizer, variables, problem.gradients(steps, SMALL), dtype)


def test_a_slow_step_of_one_is_the_inner_optimizer():
    inner = path(suite.AdamW(0.05, 0.1))
    assert problem.far(path(suite.Lookahead(suite.AdamW(0.05, 0.1), 2, 1.0)), inner) < 1e-14
    assert problem.far(path(suite.Lookahead(suite.AdamW(0.05, 0.1), 2, 0.9)), inner) > 1e-4


def test_a_slow_step_of_zero_comes_back_to_the_first_weights():
    first = problem.values(problem.variables(SMALL, dtype="float64"))
    there = path(suite.Lookahead(suite.Adam(0.05), 3, 0.0))
    assert problem.far(there[2], first) < 1e-14
    assert problem.far(there[1], first) > 1e-2


@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_a_run_resumes_bit_for_bit_in_the_middle_of_a_window(done, tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    stored = [[np.random.default_rng(step).normal(size=shape) for shape in ((3, 2), (2,))] for step in range(9)]
    optimizer = suite.Lookahead(suite.AdamW(0.05, 0.1), 4)
    model.compile(optimizer)
    problem.descend(optimizer, model.trainable_variables, stored[:done])
    model.save(tmp_path / "model.keras")
    expected = problem.descend(optimizer, model.trainable_variables, stored[done:])
    again = keras.models.load_model(tmp_path / "model.keras")
    assert problem.far(problem.descend(again.optimizer, again.trainable_variables, stored[done:]), expected) == 0
    slow = [problem.values(each.optimizer.evaluation_values(each.trainable_variables)) for each in (model, again)]
    assert problem.far(*slow) == 0


def test_slow_weights_stay_inside_a_constraint():
    variables = [keras.Variable(np.ones(3), dtype="float32")]
    variables[0].constraint = keras.constraints.NonNeg()
    optimizer = suite.Lookahead(suite.SGD(1.0), 2, 0.5)
    for gradient in (np.full(3, 2.0), np.zeros(3)):
        problem.descend(optimizer, variables, [[gradient]])
    # 1 - 2 is cut to 0, and the slow weights go half the way there, not to half of -1.
    assert problem.far(problem.values(variables), [np.full(3, 0.5)]) == 0
    assert problem.far(problem.values(optimizer.evaluation_values(variables)), [np.full(3, 0.5)]) == 0


REFUSED = {
    "LazyAdam": lambda: suite.LazyAdam(0.1),
    "Momentum": lambda: suite.Cautious(suite.Momentum(0.1, lazy=True)),
    "ScheduleFreeSGD": lambda: suite.ScheduleFreeSGD(0.1),
    "Lookahead": lambda: suite.Lookahead(suite.Adam(0.1)),
    "StochasticWeightAveraging": lambda: suite.chain(
        suite.clip_by_value(1.0), suite.StochasticWeightAveraging(suite.Adam(0.1))
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_inner_optimizer_that_cannot_be_followed_is_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"Lookahead .*{name}"):
        suite.Lookahead(REFUSED[name]())


@pytest.mark.parametrize("inner", [suite.SGD, suite.Adagrad, suite.RowWiseAdagrad])
def test_a_rule_that_moves_no_row_without_gradient_may_be_inside_and_sync_all_rows(inner):
    alone = path(inner(0.1), 4)
    ahead = path(suite.Lookahead(inner(0.1), 2), 4)
    assert problem.far(path(suite.Lookahead(inner(0.1), 2, 1.0), 4), alone) < 1e-14
    start = problem.values(problem.variables(SMALL, dtype="float64"))
    assert problem.far(ahead[1], [(a + b) / 2 for a, b in zip(start, alone[1], strict=True)]) < 1e-14


def test_a_chain_inside_moves_as_the_chain_alone_does():
    def chained():
        links = suite.clip_by_value(0.5), suite.AdamW(0.05, 0.1), suite.decay_weights(0.1, exclude="bias")
        return suite.chain(*links, suite.multiply_learning_rate({"bias": 2.0}))

    inner = chained()
    inner.exclude_from_weight_decay(var_names=["table"])
    alone = copy.deepcopy(inner.get_config())
    wrapped = path(suite.Lookahead(inner, 100), 3)
    assert problem.far(wrapped, path(suite.Chain.from_config(alone), 3)) < 1e-14
    assert problem.far(wrapped, path(chained(), 3)) > 1e-4
