"""Sophia against optax given the diagonals, and against its paper; both estimators against exact diagonals."""

import functools

import jax
import keras
import numpy as np
import optax
import pytest
import tensorflow as tf

import custom_optimizers as suite
from custom_optimizers import sophia
from tests.custom_optimizers import problem
from tests.custom_optimizers.references import RATE

STEPS, EVERY = 30, 4
SHAPES = {"kernel": (3, 2), "bias": (2,)}


def given():
    """First weights, gradients, and diagonals of which some elements are below 0."""
    source = np.random.default_rng(6)

    def drawn():
        return [np.float64(np.float32(source.normal(size=shape))) for shape in SHAPES.values()]

    return drawn(), [drawn() for _ in range(STEPS)], [[d + 0.5 for d in drawn()] for _ in range(STEPS)]


def run(optimizer, dtype="float64", late=False):
    """Estimates before the apply of every fourth step, or after it."""
    start, stored, diagonals = given()
    variables = [keras.Variable(weight, dtype=dtype) for weight in start]
    path = []
    for step, row in enumerate(stored):
        if late:
            path += problem.descend(optimizer, variables, [row], dtype)
        if step % EVERY == 0:
            optimizer.estimate([tf.constant(d, dtype) for d in diagonals[step]], variables)
        if not late:
            path += problem.descend(optimizer, variables, [row], dtype)
    return path


@functools.cache
def by_optax(momentum: float):
    """optax corrects the bias of the momentum, as the paper does not: it is given the momentum as gradients."""
    start, stored, diagonals = given()
    with jax.enable_x64(True):
        hessian = optax.GradientTransformationExtraArgs(
            lambda params: (), lambda updates, state, params=None, diagonal=None: (diagonal, state)
        )
        rule = optax.contrib.sophia(
            RATE, 0.0, 0.9, 1e-12, 0.1, gamma=0.2, update_interval=EVERY, hessian_diagonal_fn=hessian
        )
        weights = [jax.numpy.asarray(weight) for weight in start]
        state, path, m = rule.init(weights), [], [0.0] * len(start)

        @jax.jit
        def step(weights, state, m, diagonal):
            updates, state = rule.update(m, state, weights, diagonal=diagonal)
            return optax.apply_updates(weights, updates), state

        for row, diagonal in zip(stored, diagonals, strict=True):
            m = [momentum * before + (1 - momentum) * g for before, g in zip(m, row, strict=True)]
            weights, state = step(weights, state, *([jax.numpy.asarray(a) for a in part] for part in (m, diagonal)))
            path.append([np.asarray(weight) for weight in weights])
    return path


def by_paper(beta_1=0.9, beta_2=0.8, rho=0.2, decay=0.1, epsilon=1e-12):
    """Algorithm 3: estimate first, no bias correction."""
    weights, stored, diagonals = given()
    m, h, path = [0.0] * len(weights), [np.zeros_like(w) for w in weights], []
    for step, (row, diagonal) in enumerate(zip(stored, diagonals, strict=True)):
        if step % EVERY == 0:
            h = [beta_2 * old + (1 - beta_2) * d for old, d in zip(h, diagonal, strict=True)]
        m = [beta_1 * old + (1 - beta_1) * g for old, g in zip(m, row, strict=True)]
        steps = [np.clip(a / np.maximum(rho * b, epsilon), -1, 1) for a, b in zip(m, h, strict=True)]
        weights = [w - RATE * decay * w - RATE * s for w, s in zip(weights, steps, strict=True)]
        path.append(weights)
    return path


@pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-10), ("float32", 2e-5)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_are_those_of_optax_after_every_step_where_estimates_come_after_it(momentum, dtype, near):
    optimizer = suite.Sophia(RATE, momentum, 0.9, rho=0.2, weight_decay=0.1)
    for step, (ours, theirs) in enumerate(zip(run(optimizer, dtype, late=True), by_optax(momentum), strict=True)):
        assert problem.far(ours, theirs) < near, f"after step {step + 1}"


def test_weights_are_those_of_the_paper_after_every_step():
    path = run(suite.Sophia(RATE, 0.9, 0.8, rho=0.2, weight_decay=0.1))
    assert problem.far(path, by_paper()) < 1e-10


def test_a_step_without_an_estimate_is_the_sign_of_the_momentum():
    start, stored, _ = given()
    variables = [keras.Variable(weight, dtype="float64") for weight in start]
    (after,) = problem.descend(suite.Sophia(RATE, weight_decay=0.0), variables, stored[:1], "float64")
    assert problem.far(after, [w - RATE * np.sign(g) for w, g in zip(start, stored[0], strict=True)]) < 1e-12


def test_an_estimate_moves_no_weight_and_none_of_it_leaves_h_alone():
    variables = problem.variables(SHAPES, dtype="float64")
    optimizer, before = suite.Sophia(RATE, beta_2=0.75), problem.values(variables)
    optimizer.estimate([np.full((3, 2), 8.0), None], variables)
    assert problem.far(problem.values(variables), before) == 0
    assert int(optimizer.iterations) == 0
    h = [np.asarray(slots["h"]) for slots in optimizer._state.slots]
    assert problem.far(h, [np.full((3, 2), 2.0), np.zeros(2)]) == 0


def test_a_diagonal_of_another_shape_is_refused_by_name():
    with pytest.raises(ValueError, match=r"kernel.*\(3, 2\)"):
        suite.Sophia(RATE).estimate([np.ones((2, 3)), None], problem.variables(SHAPES))


@functools.cache
def two_replicas():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())


def test_the_mean_of_the_replicas_estimates_is_taken():
    strategy = two_replicas()
    with strategy.scope():
        variables = problem.variables(SHAPES, dtype="float64")
        optimizer = problem.built(suite.Sophia(RATE, beta_2=0.75), variables)

    @functools.partial(tf.function, autograph=False)
    def step():
        def in_replica():
            place = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float64)
            optimizer.estimate([tf.ones((3, 2), tf.float64) * (4 + 8 * place), None], variables)

        strategy.run(in_replica)

    step()
    for copy in optimizer._state.slots[0]["h"].value.values:
        np.testing.assert_array_equal(copy.numpy(), np.full((3, 2), 2.0))


# The estimators.


def logistic(inputs, kernel, bias):
    """The exact diagonal of the Gauss-Newton matrix of softmax regression: mean over rows of x^2 p (1 - p)."""
    z = inputs @ kernel + bias
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    spread = p * (1 - p)  # [rows, classes]
    return [np.square(inputs).T @ spread / len(inputs), spread.mean(0)]


def test_gauss_newton_bartlett_is_unbiased():
    source = np.random.default_rng(0)
    inputs = source.normal(size=(5, 3))
    kernel, bias = [keras.Variable(source.normal(size=shape), dtype="float64") for shape in SHAPES.values()]
    seed = keras.random.SeedGenerator(1)

    @functools.partial(tf.function, autograph=False)
    def draw():
        def logits():
            return tf.constant(inputs) @ kernel.value + bias.value

        return sophia.gauss_newton_bartlett(logits, [kernel, bias], seed)

    draws = [draw() for _ in range(2000)]
    mean = [np.mean([np.asarray(d) for d in each], axis=0) for each in zip(*draws, strict=True)]
    assert all(np.all(np.asarray(each) >= 0) for each in draws[0])
    for ours, exact in zip(mean, logistic(inputs, np.asarray(kernel), np.asarray(bias)), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=0.15)


def test_gauss_newton_bartlett_counts_every_position_of_a_sequence_as_a_row():
    weights = keras.Variable(np.zeros(2), dtype="float32")
    shapes = {(4, 2): 4, (2, 2, 2): 4, (3, 4, 2): 12}
    for shape, rows in shapes.items():
        (estimate,) = sophia.gauss_newton_bartlett(lambda s=shape: tf.zeros(s) + weights.value, [weights], 3)
        labels = keras.random.categorical(np.zeros((rows, 2), "float32"), 1, seed=3)[:, 0]
        share = float(np.mean(np.asarray(labels) == 0))
        np.testing.assert_allclose(estimate, [rows * (0.5 - share) ** 2] * 2, rtol=1e-5, atol=1e-7)


def test_hutchinson_is_exact_for_a_diagonal_hessian():
    curvatures = [np.array([[3.0, -1.0], [0.5, 2.0], [0.0, 7.0]]), np.array([4.0, 1.0])]
    variables = problem.variables(SHAPES, dtype="float64")

    def loss():
        return sum(tf.reduce_sum(c * tf.square(v.value)) / 2 for c, v in zip(curvatures, variables, strict=True))

    assert problem.far(sophia.hutchinson(loss, variables, 1), curvatures) < 1e-12


def test_hutchinson_is_unbiased_for_a_full_hessian_and_sees_a_gather():
    source = np.random.default_rng(0)
    root = source.normal(size=(4, 4))
    table = keras.Variable(source.normal(size=(3, 2)), dtype="float64")
    seed = keras.random.SeedGenerator(1)

    @functools.partial(tf.function, autograph=False)
    def draw():
        def loss():
            rows = tf.reshape(tf.gather(table.value, [2, 0]), [4, 1])
            return tf.reduce_sum(tf.square(tf.matmul(tf.constant(root), rows)))

        return sophia.hutchinson(loss, [table], seed)[0]

    mean = np.mean([draw().numpy() for _ in range(2000)], axis=0)  # [3, 2]
    exact = np.diag(2 * root.T @ root)
    np.testing.assert_allclose(mean[[2, 0]].ravel(), exact, rtol=0.1)
    assert np.all(mean[1] == 0)


def test_hutchinson_of_a_linear_loss_is_zero():
    variables = problem.variables(SHAPES)
    diagonals = sophia.hutchinson(lambda: sum(tf.reduce_sum(v.value) for v in variables), variables)
    assert problem.far(diagonals, [np.zeros(shape) for shape in SHAPES.values()]) == 0


def test_a_loop_with_estimates_of_either_kind_trains_a_model():
    source = np.random.default_rng(1)
    inputs = source.normal(size=(64, 3)).astype("float32")
    labels = np.argmax(inputs @ source.normal(size=(3, 2)), axis=1)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits

    for kind in ("gauss-newton", "hutchinson"):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        optimizer = suite.Sophia(0.05, rho=0.1, weight_decay=0.0)

        def loss(model=model):
            return tf.reduce_mean(losses(labels, model(inputs, training=True)))

        before = float(loss())
        for step in range(30):
            weights = model.trainable_variables
            if step % 10 == 0:
                if kind == "hutchinson":
                    diagonals = suite.hutchinson(loss, weights, step)
                else:
                    diagonals = suite.gauss_newton_bartlett(lambda model=model: model(inputs), weights, step)
                optimizer.estimate(diagonals, weights)
            with tf.GradientTape() as tape:
                value = loss()
            optimizer.apply(tape.gradient(value, [weight.value for weight in weights]), weights)
        assert float(loss()) < before / 2, kind
