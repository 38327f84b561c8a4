"""SAM: the two-phase API against optax and numpy, over replicas and loss scales, and both passes inside fit."""

import functools

import jax
import keras
import numpy as np
import optax
import pytest
import tensorflow as tf

import custom_optimizers as suite
from tests.custom_optimizers import problem
from tests.custom_optimizers.references import RATE

SMALL = problem.SMALL


def given(steps=30):
    """First weights and pairs of gradients, in numbers that float32 holds."""
    start = [np.float64(value) for value in problem.values(problem.variables())]
    rows = [[problem.dense(gradient) for gradient in row] for row in problem.gradients(2 * steps)]
    rows = [[np.float64(np.float32(gradient)) for gradient in row] for row in rows]
    return start, list(zip(rows[::2], rows[1::2], strict=True))


def both(optimizer, variables, first, second, dtype="float64"):
    """(the weights where the second gradient is due, the weights after the update)."""
    optimizer.ascend(problem.tensors(first, dtype), variables)
    away = problem.values(variables)
    optimizer.apply(problem.tensors(second, dtype), variables)
    return away, problem.values(variables)


def run(optimizer, start, pairs, dtype="float64"):
    variables = [keras.Variable(weight, dtype=dtype, name=n) for n, weight in zip(problem.SHAPES, start, strict=True)]
    return [both(optimizer, variables, *pair, dtype) for pair in pairs]


def by_optax(start, pairs, rho):
    with jax.enable_x64(True):
        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
        rule = optax.contrib.sam(optax.adamw(RATE, weight_decay=0.1), ascent, sync_period=2)
        weights, path = [jax.numpy.asarray(weight) for weight in start], []
        state = rule.init(weights)

        @jax.jit
        def step(weights, state, gradients):
            updates, state = rule.update(gradients, state, weights)
            return optax.apply_updates(weights, updates), state

        for pair in pairs:
            places = []
            for row in pair:
                weights, state = step(weights, state, [jax.numpy.asarray(gradient) for gradient in row])
                places.append([np.asarray(weight) for weight in weights])
            path.append(places)
    return path


@pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-10), ("float32", 2e-5)])
def test_both_places_are_those_of_optax_after_every_step(dtype, near):
    start, pairs = given()
    path = run(suite.SAM(suite.AdamW(RATE, 0.1, epsilon=1e-8), rho=0.3), start, pairs, dtype)
    for step, (ours, theirs) in enumerate(zip(path, by_optax(start, pairs, 0.3), strict=True), start=1):
        assert problem.far(ours, theirs) < near, f"after step {step}"


def test_adaptive_places_are_those_of_equation_5():
    rho, eta = 0.7, 0.05
    start, pairs = given(5)
    stretches = [lambda w: np.abs(w) + eta] * 3 + [np.ones_like] + [lambda w: np.abs(w) + eta]  # not that of the bias
    assert list(problem.SHAPES)[3] == "bias"
    weights = start
    for away, after in run(suite.ASAM(suite.SGD(RATE), rho, eta), start, pairs):
        first, second = pairs.pop(0)
        scales = [stretch(w) for stretch, w in zip(stretches, weights, strict=True)]
        length = np.sqrt(sum(np.sum(np.square(t * g)) for t, g in zip(scales, first, strict=True)))
        there = [w + rho * t**2 * g / length for w, t, g in zip(weights, scales, first, strict=True)]
        assert problem.far(away, there) < 1e-12
        weights = [w - RATE * g for w, g in zip(weights, second, strict=True)]
        assert problem.far(after, weights) < 1e-12


def test_an_adaptive_perturbation_scales_with_the_weights():
    start, ((first, second),) = given(1)
    kernels = [start[1]], [first[1]], [second[1]]
    away = []
    for factor in (1.0, 8.0):  # f(w / factor) has gradients that are smaller by the factor
        weights, first, second = (
            [a * s for a in part] for part, s in zip(kernels, (factor, 1 / factor, 1), strict=True)
        )
        variables = [keras.Variable(weights[0], dtype="float64", name="kernel")]
        moved = both(suite.ASAM(suite.SGD(RATE), eta=0.0), variables, first, second)[0][0]
        away.append((moved - weights[0]) / factor)
    assert problem.far(*away) < 1e-12


@pytest.mark.parametrize("kind", [suite.SAM, suite.ASAM])
def test_a_radius_of_zero_is_the_inner_optimizer_bit_for_bit(kind):
    start, pairs = given(4)
    path = run(kind(suite.Cautious(suite.AdamW(0.05, 0.1)), rho=0.0), start, pairs, "float32")
    variables = [keras.Variable(weight, dtype="float32") for weight in start]
    plain = problem.descend(suite.Cautious(suite.AdamW(0.05, 0.1)), variables, [second for _, second in pairs])
    assert problem.far([after for _, after in path], plain) == 0


def test_schedule_free_may_be_inside():
    start, pairs = given(4)
    path = run(suite.SAM(suite.ScheduleFreeSGD(0.1), rho=0.0), start, pairs)
    variables = [keras.Variable(weight, dtype="float64") for weight in start]
    plain = problem.descend(suite.ScheduleFreeSGD(0.1), variables, [second for _, second in pairs], "float64")
    assert problem.far([after for _, after in path], plain) < 1e-12


def test_rows_that_were_moved_come_back_even_if_the_second_gradient_does_not_name_them():
    variables = problem.variables(SMALL)
    before = problem.values(variables)
    optimizer = suite.SAM(suite.LazyAdam(0.1))
    first, second = problem.gradients(ids=[[0, 4, 4], [1, 1]], shapes=SMALL)
    away, after = both(optimizer, variables, first, second, "float32")
    assert np.all((away[0] != before[0]).any(1) == [True, False, False, False, True, False])
    assert np.all((after[0] != before[0]).any(1) == [False, True, False, False, False, False])


def test_a_second_ascend_starts_where_the_first_one_did():
    start, ((first, second), (other, _)) = given(2)
    variables = [keras.Variable(weight, dtype="float64") for weight in start]
    optimizer = suite.SAM(suite.SGD(RATE), rho=0.5)
    optimizer.ascend(problem.tensors(first, "float64"), variables)
    away, after = both(optimizer, variables, other, second)
    assert problem.far([away, after], run(suite.SAM(suite.SGD(RATE), rho=0.5), start, [(other, second)])[0]) < 1e-12


def test_restore_puts_every_weight_back_bit_for_bit():
    variables = problem.variables(SMALL)
    before = problem.values(variables)
    optimizer = suite.SAM(suite.SGD(RATE), rho=0.5)
    optimizer.restore()
    (row,) = problem.gradients(1, SMALL)
    optimizer.ascend(problem.tensors([row[0], None]), variables)  # the bias has no gradient
    assert problem.far(problem.values(variables), before) > 0.1
    optimizer.restore()
    optimizer.restore()
    assert problem.far(problem.values(variables), before) == 0


# Replicas.


@functools.cache
def two_replicas():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())


def losses_descended(kind, strategy):
    """The weights after each of four updates of traced steps on replicas."""
    with strategy.scope():
        variables = problem.variables(problem.TRAINED, "float64")
        optimizer = problem.built(kind(suite.AdamW(0.05, 0.1), rho=0.5), variables)

    def gradients(batch):
        weights = [variable.value for variable in variables]
        with tf.GradientTape() as tape:
            loss = problem.loss(weights, *batch)
        return tape.gradient(loss, weights)

    def in_replica(*batch):
        optimizer.ascend(gradients(batch), variables)
        optimizer.apply(gradients(batch), variables)

    replicas, path = strategy.num_replicas_in_sync, []
    step = tf.function(lambda *batch: strategy.run(in_replica, args=batch), autograph=False)
    for batch in problem.batches(4):
        size = problem.BATCH // replicas

        def part(context, array, size=size):
            place = context.replica_id_in_sync_group
            return tf.constant(array[place * size : (place + 1) * size])

        share = strategy.experimental_distribute_values_from_function
        step(*[share(functools.partial(part, array=array)) if replicas > 1 else tf.constant(array) for array in batch])
        path.append(problem.values(variables))
    return path


@pytest.mark.parametrize("kind", [suite.SAM, suite.ASAM])
def test_two_replicas_equal_one_with_the_joined_batch(kind):
    """The perturbation is that of the whole batch; each replica's own would be another step."""
    assert (
        problem.far(losses_descended(kind, two_replicas()), losses_descended(kind, tf.distribute.get_strategy())) < 1e-9
    )


# Refusals.


@pytest.mark.parametrize("kind", [suite.SAM, suite.ASAM])
def test_apply_without_ascend_is_refused_with_the_way_out(kind):
    variables = problem.variables(SMALL)
    optimizer = kind(suite.SGD(0.1))
    stored = problem.gradients(2, SMALL)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=rf"sharpness_aware\(model\).*{kind.__name__}\.ascend"):
            problem.descend(optimizer, variables, stored[:1])
        both(optimizer, variables, *stored, "float32")


def test_gradient_accumulation_is_refused():
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        suite.SAM(suite.SGD(0.1), gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        suite.ASAM(suite.SGD(0.1, gradient_accumulation_steps=2))


def test_fit_without_the_two_passes_is_refused():
    model = small(suite.SAM(suite.SGD(0.1)))
    with pytest.raises(RuntimeError, match="sharpness_aware"):
        fit(model, wrapped=False)


def test_another_optimizer_in_the_two_passes_is_refused():
    with pytest.raises(ValueError, match="SAM or ASAM, got SGD"):
        fit(small(suite.SGD(0.1)))


def test_a_model_with_a_train_step_of_its_own_is_refused():
    class Own(keras.Sequential):
        def train_step(self, data):
            return {}

    with pytest.raises(ValueError, match="Own has a train_step"):
        suite.sharpness_aware(Own())


# In fit.


def small(optimizer, jit=False, dropout=0.5):
    keras.utils.set_random_seed(3)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, use_bias=False, kernel_regularizer="l2"),  # a bias here would have noise for a gradient
            layers.BatchNormalization(momentum=0.5),
            layers.Dropout(dropout, seed=5),
            layers.Dense(1),
        ]
    )
    model.compile(optimizer, loss="mse", metrics=["mae"], jit_compile=jit)
    return model


def fit(model, wrapped=True, epochs=2, inf=None):
    source = np.random.default_rng(0)
    inputs, targets = source.normal(size=(24, 4)).astype("float32"), source.normal(size=(24, 1)).astype("float32")
    if inf is not None:
        inputs[inf] = np.inf
    model = suite.sharpness_aware(model) if wrapped else model
    data = tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(8)
    return model.fit(data, epochs=epochs, verbose=0, shuffle=False).history


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
def test_fit_with_a_radius_of_zero_is_fit_of_the_inner_optimizer(jit):
    """So the second pass sees the same dropout and batch, and leaves no trace in seeds, statistics, loss or metrics."""
    sam, plain = small(suite.SAM(suite.AdamW(0.05), rho=0.0), jit), small(suite.AdamW(0.05), jit)
    history, expected = fit(sam, epochs=1), fit(plain, wrapped=False, epochs=1)
    assert problem.far(problem.values(sam.variables), problem.values(plain.variables)) < 1e-5
    for name in ("loss", "mae"):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-4)


def test_fit_takes_the_second_gradient_away_from_the_weights():
    """Against a loop that does both passes by hand with the masks drawn from a copy of the seed."""
    sam = small(suite.SAM(suite.SGD(0.05), rho=0.5))
    hand = small(suite.SGD(0.05))
    source = np.random.default_rng(0)
    inputs, targets = source.normal(size=(24, 4)).astype("float32"), source.normal(size=(24, 1)).astype("float32")
    fit(sam, epochs=1)
    weights, others = hand.trainable_variables, hand.non_trainable_variables
    for batch in range(3):
        rows = slice(batch * 8, batch * 8 + 8)
        before = problem.values(others)

        def gradients(rows=rows):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(hand(inputs[rows], training=True) - targets[rows])) + sum(hand.losses)
            return [np.asarray(g) for g in tape.gradient(loss, [w.value for w in weights])]

        first = gradients()
        after, home = problem.values(others), problem.values(weights)
        length = np.sqrt(sum(np.sum(np.square(g)) for g in first))
        for variable, g in zip(weights, first, strict=True):
            variable.assign_add(0.5 * g / length)
        for variable, value in zip(others, before, strict=True):
            variable.assign(value)
        second = gradients()
        for variable, value in zip(others, after, strict=True):
            variable.assign(value)
        for variable, value, g in zip(weights, home, second, strict=True):
            variable.assign(value - 0.05 * g)
    assert problem.far(problem.values(sam.variables), problem.values(hand.variables)) < 1e-5


def test_fit_on_two_replicas_equals_fit_on_one():
    """Without dropout, whose masks replicas draw for themselves, and with each replica's batch like the other's."""

    def fitted(strategy):
        source = np.random.default_rng(0)
        inputs, targets = source.normal(size=(24, 4)).astype("float32"), source.normal(size=(24, 1)).astype("float32")
        with strategy.scope():
            model = small(suite.ASAM(suite.AdamW(0.05)), dropout=0.0)
            suite.sharpness_aware(model)
        half = np.arange(24).reshape(6, 4)
        rows = np.concatenate([half, half], axis=1).ravel()  # batches of 8, their halves alike
        model.fit(tf.data.Dataset.from_tensor_slices((inputs[rows], targets[rows])).batch(8), verbose=0, shuffle=False)
        return problem.values(model.variables)

    assert problem.far(fitted(two_replicas()), fitted(tf.distribute.get_strategy())) < 1e-5


@pytest.mark.parametrize("wrapper", [suite.LossScaleOptimizer, keras.optimizers.LossScaleOptimizer])
def test_a_loss_scale_around_sam_changes_nothing(wrapper):
    scaled = small(wrapper(suite.SAM(suite.AdamW(0.05), rho=0.5), initial_scale=64.0))
    plain = small(suite.SAM(suite.AdamW(0.05), rho=0.5))
    fit(scaled, epochs=1), fit(plain, epochs=1)
    assert problem.far(problem.values(scaled.variables), problem.values(plain.variables)) < 1e-5


def test_an_overflow_in_either_pass_leaves_the_weights_and_halves_the_scale():
    optimizer = suite.LossScaleOptimizer(suite.SAM(suite.SGD(0.05), rho=0.5), initial_scale=64.0)
    model = small(optimizer)
    before = problem.values(model.trainable_variables)
    fit(model, epochs=1, inf=[0, 8, 16])  # one in each batch
    assert problem.far(problem.values(model.trainable_variables), before) == 0
    assert float(optimizer.dynamic_scale) == 8.0


def test_a_fixed_loss_scale_changes_nothing():
    scaled = small(suite.SAM(suite.AdamW(0.05, loss_scale_factor=1024.0), rho=0.5))
    plain = small(suite.SAM(suite.AdamW(0.05), rho=0.5))
    fit(scaled, epochs=1), fit(plain, epochs=1)
    assert problem.far(problem.values(scaled.variables), problem.values(plain.variables)) < 1e-5


def test_a_saved_run_goes_on_bit_for_bit_once_it_is_sharpness_aware_again(tmp_path):
    model = small(suite.ASAM(suite.AdamW(0.05), rho=0.3, eta=0.2), dropout=0.0)  # Keras keeps no seeds
    fit(model)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert (again.optimizer.rho, again.optimizer.eta) == (0.3, 0.2)
    with pytest.raises(RuntimeError, match="after loading"):
        fit(again, wrapped=False)
    again = keras.models.load_model(tmp_path / "model.keras")
    fit(model), fit(again)
    assert problem.far(problem.values(again.variables), problem.values(model.variables)) == 0


def test_a_loss_scale_goes_with_embeddings():
    table = keras.Variable(np.ones((4, 2)), name="table")
    optimizer = suite.SAM(suite.SGD(0.1), loss_scale_factor=8.0)
    optimizer.build([table])
    gradient = tf.IndexedSlices(tf.constant([[8.0, 8.0]]), tf.constant([1]), (4, 2))
    optimizer.ascend([gradient], [table])
    optimizer.apply([gradient], [table])
    np.testing.assert_allclose(table[1], 0.9)
