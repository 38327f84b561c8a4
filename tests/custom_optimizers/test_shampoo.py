"""Shampoo against its algorithms in numpy: the original, and the one with averages, grafting and blocks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from custom_optimizers import SOAP, Adam, Shampoo, matrices
from tests.custom_optimizers import problem
from tests.custom_optimizers.problem import numbers, path, stored


def root(a, order, epsilon):
    """(A + epsilon |A| I)^(-1/order)."""
    values, vectors = np.linalg.eigh(a + epsilon * np.linalg.norm(a) * np.eye(len(a)))
    return vectors @ np.diag(values ** (-1 / order)) @ vectors.T


SETTINGS = {"beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-8, "shampoo_beta": 0.95, "matrix_epsilon": 1e-3}


class Reference:
    """2309.06497, algorithm 2, for one matrix of one block, with SETTINGS."""

    def __init__(self, w, rate, frequency, grafting):
        self.w, self.rate, self.frequency, self.grafting = w, rate, frequency, grafting
        self.m, self.v, self.left, self.right, self.t = 0, 0, 0, 0, 0

    def step(self, g):
        self.t += 1
        self.m = 0.9 * self.m + (1 - 0.9) * g
        self.v = 0.99 * self.v + (1 - 0.99) * g**2
        self.left = 0.95 * self.left + (1 - 0.95) * g @ g.T
        self.right = 0.95 * self.right + (1 - 0.95) * g.T @ g
        mean = self.m / (1 - 0.9**self.t)
        adam = mean / (np.sqrt(self.v / (1 - 0.99**self.t)) + 1e-8)
        measure = adam if self.grafting == "adam" else mean
        if self.t % self.frequency == 0:
            self.roots = [root(x / (1 - 0.95**self.t), 4, 1e-3) for x in (self.left, self.right)]
        direction = measure
        if self.t >= self.frequency:
            direction = self.roots[0] @ mean @ self.roots[1]
            if self.grafting != "none":
                direction = direction / np.linalg.norm(direction) * np.linalg.norm(measure)
        self.w = self.w - self.rate * direction
        return self.w


MATRICES = {"square": (5, 5), "wide": (3, 6), "conv": (2, 1, 3, 4)}


@pytest.mark.parametrize(("frequency", "grafting"), [(1, "adam"), (4, "adam"), (4, "sgd"), (3, "none")])
def test_every_step_is_the_algorithm_in_numpy(frequency, grafting):
    gradients = stored(MATRICES)
    ours = path(Shampoo(0.05, precondition_frequency=frequency, grafting=grafting, **SETTINGS), MATRICES, gradients)
    start = problem.values(problem.variables(MATRICES, dtype="float64"))
    flat = [matrices.folded(shape) for shape in MATRICES.values()]
    theirs = [Reference(w.reshape(s), np.float32(0.05), frequency, grafting) for w, s in zip(start, flat, strict=True)]
    for row, mine in zip(gradients, ours, strict=True):
        for rule, g, w in zip(theirs, row, mine, strict=True):
            assert np.max(np.abs(rule.step(g.reshape(rule.w.shape)).reshape(w.shape) - w)) < 1e-10


def test_with_sums_and_no_grafting_it_is_the_first_shampoo():
    """1802.09568, algorithm 1, but that epsilon is a share of the norm and not a number."""
    shapes = {"kernel": (4, 6)}
    gradients = stored(shapes)
    settings = {"beta_1": 0.0, "shampoo_beta": 1.0, "matrix_epsilon": 1e-4}
    ours = path(Shampoo(0.1, precondition_frequency=1, grafting="none", **settings), shapes, gradients)
    w = problem.values(problem.variables(shapes, dtype="float64"))[0]
    left, right = np.zeros((4, 4)), np.zeros((6, 6))
    for (g,), (mine,) in zip(gradients, ours, strict=True):
        left, right = left + g @ g.T, right + g.T @ g
        w = w - np.float32(0.1) * root(left, 4, 1e-4) @ g @ root(right, 4, 1e-4)
        assert np.max(np.abs(mine - w)) < 1e-10


def test_eigenvalue_correction_is_adam_in_the_eigenbases():
    shapes = {"kernel": (5, 5)}
    gradients = stored(shapes)
    arguments = {"precondition_frequency": 4, "grafting": "none", "eigenvalue_corrected": True}
    ours = path(Shampoo(0.05, **arguments, **SETTINGS), shapes, gradients)
    w = problem.values(problem.variables(shapes, dtype="float64"))[0]
    m = v = left = right = 0
    for t, ((g,), (mine,)) in enumerate(zip(gradients, ours, strict=True), 1):
        m = 0.9 * m + 0.1 * g
        left, right = 0.95 * left + 0.05 * g @ g.T, 0.95 * right + 0.05 * g.T @ g
        direction = mean = m / (1 - 0.9**t)
        if t % 4 == 0:
            q, p = np.linalg.eigh(left)[1][:, ::-1], np.linalg.eigh(right)[1][:, ::-1]
        if t >= 4:
            v = 0.99 * v + 0.01 * (q.T @ g @ p) ** 2
            direction = q @ ((q.T @ mean @ p) / (np.sqrt(v / (1 - 0.99 ** (t - 3))) + 1e-8)) @ p.T
        w = w - np.float32(0.05) * direction
        assert np.max(np.abs(mine - w)) < 1e-10


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("grafting", ["adam", "sgd"])
def test_a_grafted_step_is_as_long_as_that_of_the_rule_it_is_grafted_on(grafting, corrected):
    shapes = {"kernel": (5, 7)}
    gradients = stored(shapes)
    start = problem.values(problem.variables(shapes, dtype="float64"))
    settings = {"beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-8}
    arguments = {"grafting": grafting, "eigenvalue_corrected": corrected, "precondition_frequency": 2}
    ours = [start, *path(Shampoo(0.05, **arguments, **settings), shapes, gradients)]
    measure = path(Adam(0.05, **settings), shapes, gradients)
    if grafting == "sgd":
        means = [
            sum(0.9 ** (t - s) * 0.1 * gradients[s][0] for s in range(t + 1)) / (1 - 0.9 ** (t + 1)) for t in range(30)
        ]
        measure = [[start[0] - np.float32(0.05) * sum(means[: t + 1])] for t in range(30)]
    measure = [start, *measure]
    for t in range(30):
        ours_moved, theirs_moved = ours[t + 1][0] - ours[t][0], measure[t + 1][0] - measure[t][0]
        assert np.linalg.norm(ours_moved) == pytest.approx(np.linalg.norm(theirs_moved), rel=1e-9)
        assert t == 0 or not np.allclose(ours_moved, theirs_moved, rtol=0.05)  # another direction, once there are roots


def test_until_the_first_roots_the_step_is_that_of_the_rule_it_is_grafted_on():
    shapes = {"kernel": (5, 7)}
    gradients = stored(shapes, steps=9)
    mine = path(Shampoo(0.05, epsilon=1e-7, precondition_frequency=10), shapes, gradients)
    assert problem.far(mine, path(Adam(0.05), shapes, gradients)) < 1e-10


def test_vectors_and_scalars_take_adam_and_keep_no_square():
    shapes = {"vector": (50,), "scalar": (), "empty": (0, 3)}
    gradients = stored(shapes)
    variables = problem.variables(shapes, dtype="float64")
    optimizer = problem.built(Shampoo(0.05, epsilon=1e-7, precondition_frequency=1), variables)
    assert {tuple(v.shape) for v in optimizer.variables[2:]} == {(50,), (), (0, 3)}
    mine = problem.descend(optimizer, variables, gradients, "float64")
    assert problem.far(mine, path(Adam(0.05), shapes, gradients)) < 1e-10


@pytest.mark.parametrize("arguments", [{}, {"eigenvalue_corrected": True}], ids=["roots", "corrected"])
def test_a_kernel_of_1500_rows_moves_as_two_kernels_of_750(arguments):
    whole, halves = {"kernel": (1500, 40)}, {"top": (750, 40), "bottom": (750, 40)}
    gradients = [[row[0].astype("float32")] for row in stored(whole, steps=2)]
    start = problem.values(problem.variables(whole))[0]
    parts = [keras.Variable(start[:750], name="top"), keras.Variable(start[750:], name="bottom")]
    variables = problem.variables(whole)
    make = lambda: Shampoo(0.1, precondition_frequency=2, **arguments)  # noqa: E731
    ours = problem.descend(problem.built(make(), variables), variables, gradients)
    split = [[row[0][:750], row[0][750:]] for row in gradients]
    theirs = problem.descend(problem.built(make(), parts), parts, split)
    assert [tuple(p.shape) for p in parts] == list(halves.values())
    assert problem.far([np.concatenate(row) for row in theirs], ours) < 1e-6


def test_blocks_of_both_sides_are_put_back_in_their_places():
    shapes = {"kernel": (5, 7)}
    gradients = stored(shapes, steps=6)
    make = lambda: Shampoo(0.1, block_size=3, precondition_frequency=2, **SETTINGS)  # noqa: E731
    ours = path(make(), shapes, gradients)
    start = problem.values(problem.variables(shapes, dtype="float64"))[0]
    for rows in (slice(0, 2), slice(2, 5)):
        for columns in (slice(0, 2), slice(2, 4), slice(4, 7)):
            part = [keras.Variable(start[rows, columns], dtype="float64", name="part")]
            cut = [[row[0][rows, columns]] for row in gradients]
            theirs = problem.descend(problem.built(make(), part), part, cut, "float64")
            assert problem.far([w[0][rows, columns] for w in ours], theirs) < 1e-12


def test_a_side_that_is_too_long_is_left_alone_and_the_other_takes_the_inverse_square_root():
    shapes = {"table": (9, 3)}
    gradients = stored(shapes)
    arguments = {"precondition_frequency": 1, "max_precondition_dim": 5, "block_size": 4, "grafting": "none"}
    ours = path(Shampoo(0.05, **arguments, **SETTINGS), shapes, gradients)
    w, m, right = problem.values(problem.variables(shapes, dtype="float64"))[0], 0, 0
    for t, ((g,), (mine,)) in enumerate(zip(gradients, ours, strict=True), 1):
        m, right = 0.9 * m + 0.1 * g, 0.95 * right + 0.05 * g.T @ g
        w = w - np.float32(0.05) * (m / (1 - 0.9**t)) @ root(right / (1 - 0.95**t), 2, 1e-3)
        assert np.max(np.abs(mine - w)) < 1e-10


@pytest.mark.parametrize("corrected", [False, True])
def test_turning_the_weights_turns_the_path(corrected):
    """W -> U' W V with orthogonal U and V, gradients with it; Adam's length knows axes, so not with grafting on it."""
    shapes = {"kernel": (5, 5)}
    u, v = np.linalg.qr(numbers(5, 5, seed=5))[0], np.linalg.qr(numbers(5, 5, seed=6))[0]
    gradients = stored(shapes)
    turned = [[u.T @ g @ v] for (g,) in gradients]
    start = problem.values(problem.variables(shapes, dtype="float64"))[0]
    for grafting in ("sgd", "none"):
        arguments = {"precondition_frequency": 3, "grafting": grafting, "eigenvalue_corrected": corrected}
        plain = path(Shampoo(0.05, **arguments, **SETTINGS), shapes, gradients)
        other = path(Shampoo(0.05, **arguments, **SETTINGS), shapes, turned)
        moved = [[u.T @ (w - start) @ v] for (w,) in plain]
        assert problem.far(moved, [[w - start] for (w,) in other]) < 1e-10


def test_the_size_of_the_gradient_does_not_matter():
    """Not even for the share that is added to the eigenvalues; only for epsilon, which is taken away here."""
    shapes = {"kernel": (4, 6), "bias": (3,)}
    gradients = stored(shapes)
    small = [[1e-6 * g for g in row] for row in gradients]
    make = lambda: Shampoo(0.05, epsilon=1e-30, precondition_frequency=2)  # noqa: E731
    assert problem.far(path(make(), shapes, small), path(make(), shapes, gradients)) < 1e-8


def test_an_inverse_root_is_one_of_its_matrix_and_the_identity_for_zero():
    a = numbers(6, 9)
    a = a @ a.T
    for order in (2, 4):
        ours = np.asarray(matrices.inverse_root(keras.ops.convert_to_tensor(a), order, 1e-12))
        assert np.allclose(np.linalg.matrix_power(ours, order) @ a, np.eye(6), atol=1e-8)
    zero = matrices.inverse_root(keras.ops.zeros((3, 3)), 4, 1e-6)
    assert np.allclose(np.asarray(zero), np.eye(3))


def test_an_inverse_root_of_float32_without_full_rank_is_bounded_by_the_share():
    a = numbers(40, 3).astype("float32")
    ours = np.linalg.eigvalsh(np.asarray(matrices.inverse_root(keras.ops.convert_to_tensor(a @ a.T), 4, 1e-6)))
    norm, top = np.linalg.norm(a @ a.T), np.linalg.norm(a @ a.T, 2)
    assert ours.max() == pytest.approx((1e-6 * norm) ** -0.25, rel=0.05)
    assert ours.min() == pytest.approx(top**-0.25, rel=0.03)


def test_a_gradient_of_zero_moves_nothing_and_one_that_comes_later_moves():
    shapes = {"kernel": (4, 6)}
    zero, some = [np.zeros((4, 6))], stored(shapes, steps=1)[0]
    moved = path(Shampoo(0.05, precondition_frequency=1), shapes, [zero, zero, some], "float32")
    start = problem.values(problem.variables(shapes))
    assert problem.far(moved[:2], [start, start]) == 0
    assert 0.001 < problem.far([moved[2]], [start]) < 1


def test_roots_change_only_every_precondition_frequency_updates():
    shapes = {"kernel": (4, 4)}
    variables = problem.variables(shapes)
    optimizer = problem.built(Shampoo(0.1, precondition_frequency=3), variables)
    roots = [np.zeros((4, 4))]
    for row in stored(shapes, steps=9):
        problem.descend(optimizer, variables, [row])
        roots.append(np.array(next(v for v in optimizer.variables if v.name == "kernel_left_factor_0_0")))
    assert [t for t in range(1, 10) if np.any(roots[t] != roots[t - 1])] == [3, 6, 9]


@pytest.mark.parametrize("corrected", [False, True])
def test_a_compiled_update_is_the_eager_one_also_when_roots_change(corrected):
    shapes = {"kernel": (5, 5), "conv": (2, 2, 1, 4), "bias": (3,)}
    gradients = stored(shapes, steps=6)
    make = lambda: Shampoo(0.05, precondition_frequency=2, eigenvalue_corrected=corrected, **SETTINGS)  # noqa: E731
    eager = path(make(), shapes, gradients)
    variables = problem.variables(shapes, dtype="float64")
    optimizer = problem.built(make(), variables)
    compiled = tf.function(lambda *g: optimizer.apply(list(g), variables), jit_compile=True, autograph=False)
    for row, expected in zip(gradients, eager, strict=True):
        compiled(*[tf.constant(g) for g in row])
        # TensorFlow has XLA stop its eigendecomposition at a tolerance of 1e-6; roots are found without one.
        assert problem.far(problem.values(variables), expected) < (1e-5 if corrected else 1e-10)


def test_eigenvalue_corrected_without_grafting_is_near_soap_while_bases_stand_still():
    """Two optimizers that share nothing but the idea: gradients with fixed axes, so that their bases agree."""
    shapes = {"kernel": (3, 3)}
    u, v = np.linalg.qr(numbers(3, 3, seed=2))[0], np.linalg.qr(numbers(3, 3, seed=3))[0]
    source = np.random.default_rng(4)
    gradients = [[u @ np.diag(source.uniform(0.5, 1.5, 3) * [100, 10, 1]) @ v.T] for _ in range(6)]
    same = {"beta_1": 0.9, "beta_2": 0.9, "epsilon": 1e-8, "shampoo_beta": 0.9}
    arguments = {"precondition_frequency": 1, "grafting": "none", "eigenvalue_corrected": True}
    mine = path(Shampoo(0.1, **arguments, **same), shapes, gradients[1:])
    theirs = path(SOAP(0.1, weight_decay=0.0, precondition_frequency=1, **same), shapes, gradients)[1:]
    assert problem.far(mine, theirs) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"beta_1": 1.0}, "beta_1"),
        ({"shampoo_beta": 1.1}, "shampoo_beta"),
        ({"matrix_epsilon": 0}, "matrix_epsilon"),
        ({"precondition_frequency": 0}, "precondition_frequency"),
        ({"block_size": 0}, "block_size"),
        ({"max_precondition_dim": 0}, "max_precondition_dim"),
        ({"grafting": "adagrad"}, "grafting"),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=name):
        Shampoo(**arguments)
