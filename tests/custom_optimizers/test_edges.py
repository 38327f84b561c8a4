"""What is unusual but happens: no gradient, no elements, only zeros, other dtypes, constraints, foreign variables."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import custom_optimizers as suite
from tests.custom_optimizers import problem
from tests.custom_optimizers.suite import each

FROM_ZERO = {"Ftrl"}  # its weights are a function of the gradients alone, wherever they started
NO_GRADIENT = pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
SOME_OPTIONS = {"gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 2, "global_clipnorm": 1.0}


def start(case, options=None, shapes=problem.SMALL, dtype="float32"):
    variables = problem.variables(shapes, dtype=dtype)
    return problem.built(case.make(**(options or {})), variables), variables


def assert_finite(variables):
    for variable in variables:
        assert np.all(np.isfinite(np.asarray(keras.ops.convert_to_numpy(variable), "float64"))), variable.path


@NO_GRADIENT
@pytest.mark.parametrize("options", [{}, SOME_OPTIONS], ids=["plain", "with options"])
@pytest.mark.parametrize(**each)
def test_a_variable_without_gradient_stays_and_can_have_one_later(case, options):
    optimizer, variables = start(case, options)
    variables[1].assign(variables[1] + 50.0)
    first = problem.values(variables)
    stored = problem.gradients(6, problem.SMALL)
    path = problem.descend(optimizer, variables, [[table, None] for table, _ in stored[:2]])
    assert problem.far([bias for _, bias in path], [first[1]] * 2) < 1e-6
    path = problem.descend(optimizer, variables, stored[2:])
    assert_finite(variables + optimizer.variables)
    evaluated = problem.values(optimizer.evaluation_values(variables))[1]
    for weights in (*(bias for _, bias in path), evaluated) if case.name not in FROM_ZERO else ():
        assert problem.far(weights, first[1]) < 0.2  # zeros were not taken for a copy of the weights
    assert problem.far(path[-1][1], first[1]) > 0


def test_no_gradient_for_a_variable_warns_and_names_it():
    variables = problem.variables(problem.SMALL)
    optimizer = problem.built(suite.Adam(0.1), variables)
    with pytest.warns(UserWarning, match="bias"):
        problem.descend(optimizer, variables, [[problem.gradients(1, problem.SMALL)[0][0], None]])


@pytest.mark.parametrize(**each)
def test_no_gradient_at_all_is_refused_and_changes_nothing(case):
    optimizer, variables = start(case)
    before = problem.values(variables + optimizer.variables)
    with pytest.raises(ValueError, match="No gradients"):
        optimizer.apply([None, None], variables)
    assert problem.far(problem.values(variables + optimizer.variables), before) == 0


@pytest.mark.parametrize(**each)
def test_bfloat16_variables_have_float32_state(case):
    optimizer, variables = start(case, SOME_OPTIONS, dtype="bfloat16")
    kinds = {v.dtype for v in optimizer.variables if np.issubdtype(v.dtype, np.floating) or v.dtype == "bfloat16"}
    assert kinds == {"float32"}
    stored = [[(row[0][0], narrow(row[0][1])), narrow(row[1])] for row in problem.gradients(4, problem.SMALL)]
    path = problem.descend(optimizer, variables, stored, "bfloat16")
    assert_finite(variables + optimizer.variables)
    wide, same = start(case, SOME_OPTIONS)
    for variable in same:
        variable.assign(narrow(np.array(variable)))
    expected = problem.descend(wide, same, stored)
    assert problem.far(path, expected) < 0.05  # 4 roundings to 8 bits


def narrow(array):
    return np.asarray(array).astype(ml_dtypes.bfloat16).astype("float32")


@pytest.mark.parametrize(**each)
def test_float64_variables_have_float64_state(case):
    optimizer, variables = start(case, SOME_OPTIONS, dtype="float64")
    narrow = {v.path for v in optimizer.variables if v.dtype == "float32"}
    assert all("learning_rate" in path for path in narrow)
    path = problem.descend(optimizer, variables, problem.gradients(4, problem.SMALL), "float64")
    optimizer, variables = start(case, SOME_OPTIONS)
    assert problem.far(path, problem.descend(optimizer, variables, problem.gradients(4, problem.SMALL))) < 1e-4


@pytest.mark.parametrize("options", [SOME_OPTIONS, {"clipnorm": 0.5}], ids=["with options", "clipnorm"])
@pytest.mark.parametrize(**each)
def test_empty_and_scalar_variables_are_no_trouble(case, options):
    shapes = {"table": (problem.ROWS, 2), "empty": (0, 3), "none": (0,), "scale": ()}
    optimizer, variables = start(case, options, shapes)
    before = problem.values(variables)
    problem.descend(optimizer, variables, problem.gradients(4, shapes))  # two updates: the first may move nothing
    assert_finite(variables + optimizer.variables)
    assert problem.far(problem.values(variables)[3], before[3]) > 0


@pytest.mark.parametrize(("weight", "gradient"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize(**each)
def test_zeros_stay_finite(case, weight, gradient):
    optimizer, variables = start(case, shapes=problem.SHAPES)
    for variable in variables:
        variable.assign(weight * variable)
    stored = [[times(each, gradient) for each in row] for row in problem.gradients(3)]
    problem.descend(optimizer, variables, stored)
    assert_finite(variables + optimizer.variables)
    if weight == gradient == 0:
        assert not problem.flat(problem.values(variables)).any()


def times(gradient, factor):
    return (gradient[0], gradient[1] * factor) if isinstance(gradient, tuple) else gradient * factor


@pytest.mark.parametrize(**each)
def test_a_constraint_holds_after_every_update(case):
    optimizer, variables = start(case, SOME_OPTIONS)
    variables[1].constraint = lambda w: keras.ops.clip(w, 0.0, 0.01)
    path = problem.descend(optimizer, variables, problem.gradients(4, problem.SMALL))
    bias = np.stack([bias for _, bias in path[1::2]])
    assert bias.min() >= 0
    assert bias.max() <= np.float32(0.01)


@pytest.mark.parametrize(**each)
def test_a_variable_that_the_optimizer_was_not_built_with_is_refused(case):
    optimizer, variables = start(case)
    before = problem.values(variables + optimizer.variables)
    other = keras.Variable(np.ones(3, "float32"), name="other")
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([tf.ones((6, 2)), tf.ones(3)], [variables[0], other])
    assert problem.far(problem.values(variables + optimizer.variables), before) == 0


def test_another_number_of_gradients_is_refused():
    variables = problem.variables(problem.SMALL)
    with pytest.raises(ValueError, match="1 gradients for 2 variables"):
        suite.Adam(0.1).apply([tf.ones((6, 2))], variables)


def test_apply_before_build_without_variables_is_refused():
    with pytest.raises(ValueError, match="not built"):
        suite.Adam(0.1).apply([tf.ones(3)])


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize(**each)
def test_a_variable_that_is_overwritten_with_its_gradient_is_assigned(case, every):
    variables = problem.variables({**problem.SMALL, "scale": ()})
    variables[2].overwrite_with_gradient = True
    optimizer = problem.built(case.make(gradient_accumulation_steps=every, use_ema=True, clipnorm=0.1), variables)
    assert not [v.name for v in optimizer.variables if v.name.startswith("scale_") and "accumulator" not in v.name]
    stored = problem.gradients(2, problem.SMALL)
    first = float(variables[2])
    problem.descend(optimizer, variables, [[*stored[0], 7.0]])
    assert float(variables[2]) == (first if every else 7.0)
    problem.descend(optimizer, variables, [[*stored[1], 5.0]])
    assert float(variables[2]) == (7.0 if every else 5.0)  # accumulation keeps the largest, as Keras does
    assert_finite(variables + optimizer.variables)


@pytest.mark.parametrize(**each)
def test_building_twice_adds_nothing(case):
    optimizer, variables = start(case, SOME_OPTIONS)
    before = [variable.path for variable in optimizer.variables]
    optimizer.build(variables)
    assert [variable.path for variable in optimizer.variables] == before
    assert len({id(variable) for variable in optimizer.variables}) == len(before)


@pytest.mark.parametrize(**each)
def test_a_learning_rate_of_zero_leaves_the_weights(case):
    optimizer, variables = start(case)
    optimizer.learning_rate = 0.0
    before = problem.values(variables)
    path = problem.descend(optimizer, variables, problem.gradients(2, problem.SMALL))
    assert problem.far(path, [before] * 2) == 0
    assert_finite(optimizer.variables)
    optimizer.learning_rate = 0.05
    problem.descend(optimizer, variables, problem.gradients(2, problem.SMALL))
    assert_finite(variables + optimizer.variables)


def random_shapes(seed, count=6):
    source = np.random.default_rng(seed)
    shapes = {f"v{i}": tuple(source.integers(1, 5, source.integers(0, 5)).tolist()) for i in range(count)}
    return {"table": (problem.ROWS, int(source.integers(1, 5))), **shapes}


@pytest.mark.parametrize(**each)
def test_variables_of_any_shape_descend(case):
    assert_descends(case, random_shapes(seed=len(case.name)))


def assert_descends(case, shapes):
    optimizer, variables = start(case, shapes=shapes)
    before = problem.values(variables)
    problem.descend(optimizer, variables, problem.gradients(2, shapes))
    assert_finite(variables + optimizer.variables)
    assert all(problem.far(new, old) > 0 for new, old in zip(problem.values(variables), before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(**each)
def test_variables_of_any_shape_descend_whatever_hypothesis_finds(case):
    sizes = st.lists(st.integers(1, 4), max_size=4).map(tuple)

    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(sizes, min_size=1, max_size=4), st.integers(1, 4))
    def check(shapes, columns):
        assert_descends(case, {"table": (problem.ROWS, columns), **{f"v{i}": s for i, s in enumerate(shapes)}})

    check()
