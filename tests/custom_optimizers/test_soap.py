"""SOAP against its algorithm in numpy, and what its bases must be.

Trajectories are compared where they are unique: a statistic that lacks more than one dimension of its full rank has no
unique eigenbasis, so shapes are square, or their long side is beyond max_precondition_dim.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from custom_optimizers import SOAP, Adam, matrices
from custom_optimizers.soap import power_step
from tests.custom_optimizers import problem
from tests.custom_optimizers.problem import numbers, path, stored


class Reference:
    """2409.11321, algorithms 3 and 4, for one matrix; M stays in the space of W, as the paper has it."""

    def __init__(self, w, rate, beta_1, beta_2, shampoo_beta, epsilon, decay, frequency, largest):
        self.w, self.m, self.v = w, np.zeros_like(w), np.zeros_like(w)
        self.rate, self.betas, self.shampoo_beta = rate, (beta_1, beta_2), shampoo_beta
        self.epsilon, self.decay, self.frequency = epsilon, decay, frequency
        self.sides = [axis for axis in (0, 1) if w.ndim == 2 and w.shape[axis] <= largest]
        self.statistics = {axis: np.zeros((w.shape[axis],) * 2) for axis in self.sides}
        self.bases = {}
        self.moves = 0

    def project(self, x):
        for axis in self.sides:
            x = np.moveaxis(np.tensordot(self.bases[axis], x, (0, axis)), 0, axis)
        return x

    def back(self, x):
        for axis in self.sides:
            x = np.moveaxis(np.tensordot(self.bases[axis], x, (1, axis)), 0, axis)
        return x

    def step(self, g):
        first = not self.bases and self.moves == 0 and not hasattr(self, "seen")
        self.seen = True
        if not first:
            self.moves += 1
            one, two = self.betas
            self.m = one * self.m + (1 - one) * g
            self.v = two * self.v + (1 - two) * self.project(g) ** 2
            m, v = self.project(self.m) / (1 - one**self.moves), self.v / (1 - two**self.moves)
            self.w = self.w - self.rate * (self.back(m / (np.sqrt(v) + self.epsilon)) + self.decay * self.w)
        for axis in self.sides:
            other = np.tensordot(g, g, (1 - axis, 1 - axis))
            beta = self.shampoo_beta
            self.statistics[axis] = beta * self.statistics[axis] + (1 - beta) * other
            if first:
                self.bases[axis] = np.linalg.eigh(self.statistics[axis])[1][:, ::-1]
            elif self.moves % self.frequency == 0:
                product = self.statistics[axis] @ self.bases[axis]
                order = np.argsort(-np.sum(self.bases[axis] * product, axis=0))
                self.bases[axis] = np.linalg.qr(product[:, order])[0]
                self.v = np.take(self.v, order, axis=axis)
        return self.w


SHAPES = {
    "square": (5, 5),
    "wide": (4, 9),
    "tall": (9, 4),
    "conv": (2, 1, 2, 4),
    "vector": (5,),
    "scalar": (),
    "long": (8, 9),
}


@pytest.mark.parametrize("shampoo_beta", [None, 0.8])
@pytest.mark.parametrize("frequency", [1, 3])
def test_every_step_is_the_algorithm_in_numpy(frequency, shampoo_beta):
    settings = {"beta_1": 0.9, "beta_2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
    optimizer = SOAP(
        0.05, shampoo_beta=shampoo_beta, precondition_frequency=frequency, max_precondition_dim=5, **settings
    )
    gradients = stored(SHAPES)
    ours = path(optimizer, SHAPES, gradients)
    flat = {name: matrices.folded(shape) for name, shape in SHAPES.items()}
    start = problem.values(problem.variables(SHAPES, dtype="float64"))
    theirs = [
        Reference(w.reshape(flat[name]), np.float32(0.05), 0.9, 0.95, shampoo_beta or 0.95, 1e-8, 0.1, frequency, 5)
        for name, w in zip(SHAPES, start, strict=True)
    ]
    for row, mine in zip(gradients, ours, strict=True):
        for rule, g, w in zip(theirs, row, mine, strict=True):
            assert np.max(np.abs(rule.step(g.reshape(rule.w.shape)).reshape(w.shape) - w)) < 1e-10


def test_float32_stays_near_float64():
    shapes = {"square": (5, 5), "vector": (5,)}
    gradients = stored(shapes)
    make = lambda: SOAP(0.01, precondition_frequency=3)  # noqa: E731
    assert problem.far(path(make(), shapes, gradients, "float32"), path(make(), shapes, gradients)) < 2e-4


def test_turning_the_weights_turns_the_path():
    """W -> U' W V with orthogonal U and V, gradients with it, as for no Adam."""
    shapes = {"kernel": (5, 5)}
    u, v = np.linalg.qr(numbers(5, 5, seed=5))[0], np.linalg.qr(numbers(5, 5, seed=6))[0]
    gradients = stored(shapes)
    turned = [[u.T @ g @ v] for (g,) in gradients]
    start = problem.values(problem.variables(shapes, dtype="float64"))[0]

    def difference(make):
        plain, other = path(make(), shapes, gradients), path(make(), shapes, turned)
        moved = [[u.T @ (w - start) @ v] for (w,) in plain]
        return problem.far(moved, [[w - start] for (w,) in other])

    assert difference(lambda: SOAP(0.05, weight_decay=0.0, precondition_frequency=3)) < 1e-10
    assert difference(lambda: Adam(0.05)) > 0.1


def test_the_first_update_moves_nothing_but_finds_the_eigenbases():
    shapes = {"kernel": (5, 5), "bias": (4,)}
    variables = problem.variables(shapes, dtype="float64")
    start = problem.values(variables)
    optimizer = problem.built(SOAP(0.1, weight_decay=0.5), variables)
    ((g, b),) = stored(shapes, steps=1)
    assert problem.far(problem.descend(optimizer, variables, [[g, b]], "float64"), [start]) == 0
    slots = {v.name: np.asarray(v) for v in optimizer.variables}
    assert not slots["kernel_m"].any()
    assert not slots["kernel_v"].any()
    assert not slots["bias_m"].any()
    for side, gram in (("left", g @ g.T), ("right", g.T @ g)):
        basis = slots[f"kernel_{side}_basis"]
        values = basis.T @ gram @ basis
        assert np.allclose(values, np.diag(np.sort(np.linalg.eigvalsh(gram))[::-1]), atol=1e-10)


def test_vectors_and_scalars_take_adam_one_update_later():
    shapes = {"vector": (5,), "scalar": ()}
    gradients = stored(shapes)
    settings = {"beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-8, "weight_decay": 0.1}
    late = path(SOAP(0.05, **settings), shapes, gradients)[1:]
    assert problem.far(late, path(Adam(0.05, **settings), shapes, gradients[1:])) < 1e-10


def test_power_steps_end_in_the_sorted_eigenbasis():
    vectors = np.linalg.qr(numbers(6, 6))[0]
    values = 3.0 ** np.arange(6, 0, -1)
    statistic = keras.ops.convert_to_tensor((vectors * values) @ vectors.T)
    basis = keras.ops.convert_to_tensor(np.linalg.qr(numbers(6, 6, seed=3))[0])
    for _ in range(40):
        basis, _ = power_step(statistic, basis)
    assert np.allclose(np.abs(vectors.T @ np.asarray(basis)), np.eye(6), atol=1e-8)


def test_a_basis_that_is_out_of_order_is_sorted_and_the_second_moments_with_it():
    """A statistic that turns its eigenvalues around: V must follow its directions, not its places."""
    shapes = {"kernel": (2, 2)}
    early, late = np.diag([10.0, 1.0]), np.diag([0.5, 20.0])
    variables = problem.variables(shapes, dtype="float64")
    optimizer = problem.built(SOAP(0.1, beta_2=0.9, shampoo_beta=0.5, precondition_frequency=2), variables)
    problem.descend(optimizer, variables, [[early], [late], [late]], "float64")
    slots = {v.name: np.asarray(v) for v in optimizer.variables}
    assert np.allclose(np.abs(slots["kernel_left_basis"]), [[0, 1], [1, 0]], atol=1e-12)
    assert np.allclose(np.diag(slots["kernel_v"]), [0.19 * 400, 0.19 * 0.25])


def test_bases_stay_orthogonal_where_statistics_lack_rank():
    shapes = {"tall": (8, 2), "zero": (3, 3)}
    gradients = [[row[0], np.zeros((3, 3))] for row in stored(shapes)]
    variables = problem.variables(shapes)
    optimizer = problem.built(SOAP(0.1, precondition_frequency=2), variables)
    last = problem.descend(optimizer, variables, gradients)[-1]
    assert np.isfinite(problem.flat(last)).all()
    bases = [np.asarray(v) for v in optimizer.variables if v.name.endswith("basis")]
    assert [basis.shape for basis in bases] == [(8, 8), (2, 2), (3, 3), (3, 3)]
    for basis in bases:
        assert np.allclose(basis.T @ basis, np.eye(len(basis)), atol=1e-5)


def test_a_side_that_is_too_long_has_no_basis_and_costs_no_square():
    shapes = {"table": (1000, 8), "huge": (1000, 900), "empty": (0, 4), "column": (5, 1)}
    variables = problem.variables(shapes)
    optimizer = problem.built(SOAP(max_precondition_dim=500), variables)
    squares = [(v.name, tuple(v.shape)) for v in optimizer.variables[2:] if not v.name.endswith(("_m", "_v"))]
    expected = [("table_right", 8), ("table_right_basis", 8), ("column_left", 5), ("column_left_basis", 5)]
    assert squares == [(name, (size, size)) for name, size in expected]
    problem.descend(optimizer, variables, stored(shapes, steps=2), "float32")


def test_bases_change_only_every_precondition_frequency_moves():
    shapes = {"kernel": (4, 4)}
    variables = problem.variables(shapes)
    optimizer = problem.built(SOAP(0.1, precondition_frequency=3), variables)
    bases = []
    for row in stored(shapes, steps=10):
        problem.descend(optimizer, variables, [row])
        bases.append(np.array(next(v for v in optimizer.variables if v.name == "kernel_left_basis")))
    changed = [t for t in range(2, 11) if np.any(bases[t - 1] != bases[t - 2])]
    assert changed == [4, 7, 10]


def test_bfloat16_kernels_keep_float32_state_and_descend():
    variables = [keras.Variable(numbers(6, 6), dtype="bfloat16", name="kernel")]
    optimizer = problem.built(SOAP(0.1, precondition_frequency=2), variables)
    assert {v.dtype for v in optimizer.variables[2:]} == {"float32"}
    before = np.sum(np.square(problem.flat(problem.values(variables))))
    for _ in range(10):
        optimizer.apply([keras.ops.convert_to_tensor(variables[0])], variables)
    assert np.sum(np.square(problem.flat(problem.values(variables)))) < 0.7 * before


def test_a_compiled_update_is_the_eager_one_also_when_bases_change():
    shapes = {"kernel": (5, 5), "conv": (2, 2, 1, 4), "bias": (3,)}
    gradients = stored(shapes, steps=8)
    eager = path(SOAP(0.05, precondition_frequency=3), shapes, gradients)
    variables = problem.variables(shapes, dtype="float64")
    optimizer = problem.built(SOAP(0.05, precondition_frequency=3), variables)
    compiled = tf.function(lambda *g: optimizer.apply(list(g), variables), jit_compile=True, autograph=False)
    for row, expected in zip(gradients, eager, strict=True):
        compiled(*[tf.constant(g) for g in row])
        assert problem.far(problem.values(variables), expected) < 1e-8  # XLA's eigenvectors are good to that


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"beta_1": 1.0}, "beta_1"),
        ({"beta_2": -0.1}, "beta_2"),
        ({"shampoo_beta": 1.0}, "shampoo_beta"),
        ({"epsilon": 0}, "epsilon"),
        ({"precondition_frequency": 0}, "precondition_frequency"),
        ({"max_precondition_dim": 0}, "max_precondition_dim"),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=name):
        SOAP(**arguments)
