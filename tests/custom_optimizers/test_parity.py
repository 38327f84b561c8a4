"""Every rule against optax, or against a slow one from its paper: stored gradients, all weights after every step.

Another optimizer joins by one line of CASES. The table gets sparse gradients with repeated and absent rows.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import keras
import numpy as np
import optax
import pytest

import custom_optimizers as suite
from tests.custom_optimizers import problem, references
from tests.custom_optimizers.references import RATE, by_array, by_optax, by_row

STEPS = 30
SHAPES = {name: problem.SHAPES[name] for name in ("table", "conv", "bias", "scale")}
NEAR = {"float64": 1e-10, "float32": 2e-5}
WARM = suite.WarmUp(0.05, 10)
CYCLE = suite.OneCycle(0.05, STEPS)


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    make: Callable
    reference: Callable


def rates(schedule) -> list[float]:
    return [float(schedule(step)) for step in range(STEPS)]


def half_life(beta: float, warmup: int):
    """optax' schedule for b3: from 0.9, linear in the half-life. optax counts from 0, the paper from 1."""

    def schedule(count):
        share = jax.numpy.minimum((jax.numpy.float64(count) + 1) / warmup, 1.0)
        first, last = (np.log(0.5) / np.log(each) for each in (0.9, beta))
        return 0.5 ** (1 / ((1 - share) * first + share * last))

    return schedule


def warm_schedule_free():
    """Schedule-Free AdamW with a warm-up: optax counts from 1 outside and from 0 inside."""
    table = jax.numpy.asarray(rates(WARM))
    inner = optax.chain(
        optax.scale_by_rms(decay=0.999, eps=1e-8, eps_in_sqrt=False, bias_correction=True),
        optax.scale_by_learning_rate(lambda count: table[count]),
    )
    return optax.contrib.schedule_free(inner, lambda count: table[count - 1], b1=0.9)


def matrices(weights):
    return jax.tree.map(lambda weight: weight.ndim > 1, weights)


free = optax.contrib.schedule_free_eval_params
adopted = (optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(RATE))
fixed = [RATE] * STEPS, [0.9] * STEPS
CASES = [
    Case("Adagrad", lambda: suite.Adagrad(RATE), by_optax(lambda: optax.adagrad(RATE))),
    Case("Adam", lambda: suite.Adam(RATE, epsilon=1e-8), by_optax(lambda: optax.adam(RATE))),
    Case("AdamW", lambda: suite.AdamW(RATE, 0.1), by_optax(lambda: optax.adamw(RATE, eps=1e-7, weight_decay=0.1))),
    Case("AdEMAMix", lambda: suite.AdEMAMix(RATE), by_optax(lambda: optax.contrib.ademamix(RATE))),
    Case(
        "AdEMAMix, both warmed up in 20 updates",
        lambda: suite.AdEMAMix(RATE, alpha=8, alpha_warmup=20, beta_3_warmup=20, weight_decay=0.1),
        by_optax(
            lambda: optax.contrib.ademamix(
                RATE,
                alpha=lambda count: 8 * jax.numpy.minimum((jax.numpy.float64(count) + 1) / 20, 1.0),
                b3=half_life(0.9999, 20),
                weight_decay=0.1,
            )
        ),
    ),
    Case("AdEMAMix without m2", lambda: suite.AdEMAMix(RATE, alpha=0), by_optax(lambda: optax.adam(RATE))),
    Case("Adan", lambda: suite.Adan(RATE), by_array(references.adan())),
    Case("Adan, decay", lambda: suite.Adan(RATE, weight_decay=0.1), by_array(references.adan(weight_decay=0.1))),
    Case(
        "ADOPT",
        lambda: suite.ADOPT(RATE, weight_decay=0.1),
        by_optax(lambda: optax.chain(optax.contrib.scale_by_adopt(), *adopted)),
    ),
    Case(
        "ADOPT without clipping",
        lambda: suite.ADOPT(RATE, beta_2=0.99, epsilon=0.01, clipping=False),
        by_optax(lambda: optax.contrib.adopt(RATE, b2=0.99, eps=0.01, use_clipping=False)),
    ),
    Case(
        "Cautious",
        lambda: suite.Cautious(suite.AdamW(RATE, 0.1, epsilon=1e-8)),
        by_array(references.adam(weight_decay=0.1, cautious=True)),
    ),
    Case("Ftrl", lambda: suite.Ftrl(RATE), by_row(references.ftrl())),
    Case(
        "Ftrl, regularized",
        lambda: suite.Ftrl(RATE, -0.4, 0.0, 0.3, 0.02, 0.01, beta=1.0),
        by_row(references.ftrl(l1=0.3, lambda_2=0.04, beta=1.0, power=0.4, initial=0.0, shrinkage=0.01)),
    ),
    Case("LARS", lambda: suite.LARS(RATE, weight_decay=0.1), by_array(references.lars(weight_decay=0.1))),
    Case(
        "LARS, vectors too",
        lambda: suite.LARS(RATE, 0.8, 0.1, 0.02, adapt_vectors=True),
        by_array(references.lars(0.8, 0.1, 0.02, vectors=True)),
    ),
    Case(
        "LARS without decay",
        lambda: suite.LARS(RATE, weight_decay=0.0),
        by_optax(lambda: optax.lars(RATE, trust_ratio_mask=matrices)),
    ),
    Case("LazyAdam", lambda: suite.LazyAdam(RATE, epsilon=1e-8), by_row(references.adam())),
    Case("LazyAdamW", lambda: suite.LazyAdamW(RATE, 0.1, epsilon=1e-8), by_row(references.adam(weight_decay=0.1))),
    Case("MARS", lambda: suite.MARS(RATE), by_array(references.mars())),
    Case("MARS, strong", lambda: suite.MARS(RATE, gamma=0.3), by_array(references.mars(gamma=0.3))),
    Case("Momentum", lambda: suite.Momentum(RATE), by_row(references.momentum(*fixed))),
    Case(
        "Momentum, all rows", lambda: suite.Momentum(RATE, lazy=False), by_optax(lambda: optax.sgd(RATE, momentum=0.9))
    ),
    Case(
        "Nesterov, all rows",
        lambda: suite.Momentum(RATE, nesterov=True, lazy=False),
        by_optax(lambda: optax.sgd(RATE, momentum=0.9, nesterov=True)),
    ),
    Case(
        "Momentum and rate in one cycle",
        lambda: suite.Momentum(CYCLE, CYCLE.momentum()),
        by_row(references.momentum(rates(CYCLE), rates(CYCLE.momentum()))),
    ),
    Case("Nesterov", lambda: suite.Momentum(RATE, nesterov=True), by_row(references.momentum(*fixed, nesterov=True))),
    Case("RAdam", lambda: suite.RAdam(RATE), by_optax(lambda: optax.radam(RATE, threshold=4.0))),
    Case(
        "RAdam, decay",
        lambda: suite.RAdam(RATE, beta_2=0.9, weight_decay=0.1),
        by_optax(
            lambda: optax.chain(
                optax.scale_by_radam(b2=0.9, threshold=4.0),
                optax.add_decayed_weights(0.1),
                optax.scale_by_learning_rate(RATE),
            )
        ),
    ),
    Case("RAdam, never adapted", lambda: suite.RAdam(RATE, beta_2=0.0), by_optax(lambda: optax.radam(RATE, b2=0.0))),
    Case("RowWiseAdagrad", lambda: suite.RowWiseAdagrad(RATE), by_row(references.row_wise_adagrad())),
    Case(
        "ScheduleFreeAdamW",
        lambda: suite.ScheduleFreeAdamW(RATE, weight_decay=0.1),
        by_optax(lambda: optax.contrib.schedule_free_adamw(RATE, weight_decay=0.1), free),
    ),
    Case("ScheduleFreeAdamW, warm-up", lambda: suite.ScheduleFreeAdamW(WARM), by_optax(warm_schedule_free, free)),
    Case(
        "ScheduleFreeSGD",
        lambda: suite.ScheduleFreeSGD(RATE, weight_decay=0.1),
        by_optax(lambda: optax.contrib.schedule_free_sgd(RATE, weight_decay=0.1), free),
    ),
    Case("SGD", lambda: suite.SGD(RATE), by_optax(lambda: optax.sgd(RATE))),
    Case("SGD, momentum", lambda: suite.SGD(RATE, 0.9), by_optax(lambda: optax.sgd(RATE, momentum=0.9))),
    Case(
        "SGD, momentum and rate in one cycle",
        lambda: suite.SGD(CYCLE, CYCLE.momentum(), nesterov=True),
        by_array(references.momentum(rates(CYCLE), rates(CYCLE.momentum()), nesterov=True)),
    ),
]
AVERAGING = [case for case in CASES if case.make().two_points]


def given():
    """The first weights and all gradients, in numbers that float32 holds, so that all runs have the same."""
    ids = np.random.default_rng(3).integers(0, problem.ROWS, (STEPS, 4))
    start = [np.float64(value) for value in problem.values(problem.variables(SHAPES))]
    return start, [[_rounded(gradient) for gradient in row] for row in problem.gradients(shapes=SHAPES, ids=ids)]


def _rounded(gradient):
    if isinstance(gradient, tuple):
        return gradient[0], _rounded(gradient[1])
    return np.float64(np.float32(gradient))


@functools.cache
def expected(case):
    return case.reference(*given())


def started(dtype):
    start, stored = given()
    return [keras.Variable(w, dtype=dtype, name=name) for w, name in zip(start, SHAPES, strict=True)], stored


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_weights_are_those_of_the_reference_after_every_step(case, dtype):
    variables, stored = started(dtype)
    path = problem.descend(case.make(), variables, stored, dtype)
    for step, (ours, theirs) in enumerate(zip(path, expected(case)[0], strict=True), start=1):
        assert problem.far(ours, theirs) < NEAR[dtype], f"after step {step}"


@pytest.mark.parametrize("case", AVERAGING, ids=[case.name for case in AVERAGING])
def test_weights_to_evaluate_are_those_of_the_reference_after_every_step(case):
    variables, stored = started("float64")
    optimizer = case.make()
    for step, (row, theirs) in enumerate(zip(stored, expected(case)[1], strict=True), start=1):
        optimizer.apply(problem.tensors(row, "float64"), variables)
        assert problem.far(optimizer.evaluation_values(variables), theirs) < NEAR["float64"], f"after step {step}"
