"""Sparse gradients: a row that is named twice has one gradient, the sum, whatever the rule does with it."""

import numpy as np
import pytest

from tests.custom_optimizers import problem
from tests.custom_optimizers.suite import CASES, each

OPTIONS = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.3},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "accumulation": {"gradient_accumulation_steps": 2},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
LAZY = [case for case in CASES if case.make().lazy]
lazy = pytest.mark.parametrize("case", LAZY, ids=[case.name for case in LAZY])
NEAR = 1e-9  # sums in another order, in float64
SOME = [[0, 4, 0, 4, 4], [1, 1, 1, 1, 1], [2, 4, 0, 2, 5], [3]]  # repeats, one id alone, rows that never come
ALL = [[5, 4, 3, 2, 1, 0, 0, 3], [0, 1, 2, 3, 4, 5, 5, 5]] * 2


def run(case, stored, options, columns=(2,), id_type="int64"):
    """The weights after each step, and the optimizer."""
    shapes = {**problem.SMALL, "table": (problem.ROWS, *columns)}
    variables = problem.variables(shapes, dtype="float64")
    optimizer = problem.built(case.make(**options), variables)
    return problem.descend(optimizer, variables, stored, "float64", id_type), optimizer


def stored(ids, columns=(2,)):
    return problem.gradients(ids=ids, shapes={**problem.SMALL, "table": (problem.ROWS, *columns)})


def changed(stored, change):
    return [[change(gradient) for gradient in row] for row in stored]


@options
@pytest.mark.parametrize(**each)
def test_slices_of_one_row_count_as_their_sum(case, options):
    repeated = stored(SOME)
    path, optimizer = run(case, repeated, options)
    same = problem.summed if optimizer.lazy else problem.dense
    assert problem.far(path, run(case, changed(repeated, same), options)[0]) < NEAR


@options
@lazy
def test_a_lazy_rule_is_the_dense_one_where_every_row_is_touched(case, options):
    ids = [[5, 4, 3, 5], [0, 1, 2, 0, 3]] * 2 if options.get("gradient_accumulation_steps") else ALL
    touching = stored(ids)
    path, _ = run(case, touching, options)
    assert problem.far(path, run(case, changed(touching, problem.dense), options)[0]) < NEAR


@options
@lazy
def test_a_lazy_rule_leaves_untouched_rows_and_their_state_bit_for_bit(case, options):
    """Rows 0 and 1 come in the first steps, so their state is not just zeros; rows 2 and 4 never do."""
    variables = problem.variables(problem.SMALL)
    optimizer = problem.built(case.make(**options), variables)
    problem.descend(optimizer, variables, problem.gradients(ids=[[0, 1, 1], [1, 0]], shapes=problem.SMALL))
    arrays = [variables[0], *(v for v in optimizer.variables if v.name.startswith("table_") and v.shape[:1] == (6,))]
    arrays = [v for v in arrays if not v.name.endswith(("accumulator_touched", "gradient_accumulator"))]
    before = problem.values(arrays)
    problem.descend(optimizer, variables, problem.gradients(ids=[[3, 5, 3], [5, 5]], shapes=problem.SMALL, seed=5))
    for array, old, new in zip(arrays, before, problem.values(arrays), strict=True):
        np.testing.assert_array_equal(new[[0, 1, 2, 4]], old[[0, 1, 2, 4]], err_msg=array.name)
    assert np.all(problem.values(variables)[0][[3, 5]] != before[0][[3, 5]])


@pytest.mark.parametrize(**each)
def test_ids_may_be_int32(case):
    some = stored(SOME)
    assert problem.far(run(case, some, {})[0], run(case, some, {}, id_type="int32")[0]) == 0


@pytest.mark.parametrize(**each)
def test_no_ids_at_all_are_a_gradient_of_zeros(case):
    some = stored([[0, 4, 4], [], [1], []])
    path, optimizer = run(case, some, {})
    if optimizer.lazy:
        assert np.array_equal(path[1][0], path[0][0])
        assert np.array_equal(path[3][0], path[2][0])
    else:
        assert problem.far(path, run(case, changed(some, problem.dense), {})[0]) < NEAR


@pytest.mark.parametrize(**each)
def test_a_table_may_have_one_axis(case):
    some = stored(SOME, columns=())
    path, optimizer = run(case, some, {}, columns=())
    same = problem.summed if optimizer.lazy else problem.dense
    assert problem.far(path, run(case, changed(some, same), {}, columns=())[0]) < NEAR
