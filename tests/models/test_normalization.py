"""Claims about batch normalisation: it is Keras' by another way, and on replicas it sees the whole batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.normalization import BatchNormalization

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(2.0, 3.0, (8, 4, 4, 3))  # [batch, h, w, channels]; halves of other moments:
X[:4] += [5.0, -1.0, 0.0]
TARGET = RANDOM.normal(size=X.shape)
NEAR = {"float64": 1e-12, "float32": 1e-5}


def one_replica():
    return tf.distribute.get_strategy()


def two_replicas():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())


def layer_of(kind=BatchNormalization, **options) -> keras.layers.Layer:
    layer = kind(momentum=0.9, **options)
    layer.build(X.shape)
    layer.gamma.assign([1.5, 0.5, 2.0])
    layer.beta.assign([0.1, -0.2, 0.3])
    return layer


def trained(strategy, dtype: str, x=X, steps: int = 10, **options) -> dict[str, np.ndarray]:
    """What is left after SGD on the layer and on its inputs: the last outputs and gradients among it."""
    share = len(x) // strategy.num_replicas_in_sync
    with strategy.scope():
        layer = layer_of(dtype=dtype, **options)

    def part(array):
        start = tf.distribute.get_replica_context().replica_id_in_sync_group * share
        return tf.constant(array, dtype)[start : start + share]

    def update():
        x_, goal = part(x), part(TARGET)
        with tf.GradientTape() as tape:
            tape.watch(x_)
            y = layer(x_, training=True)
            loss = tf.reduce_sum(tf.square(y - goal)) / len(x)
        *gradients, x_gradient = tape.gradient(loss, [layer.gamma.value, layer.beta.value, x_])
        gradients = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
        for variable, gradient in zip((layer.gamma, layer.beta), gradients, strict=True):
            variable.assign_sub(0.002 * gradient)
        return y, x_gradient, *gradients

    run = tf.function(lambda: strategy.run(update), autograph=False)
    for _ in range(steps):
        y, x_gradient, *gradients = (strategy.experimental_local_results(value) for value in run())
    values = {"outputs": np.concatenate(y), "input gradient": np.concatenate(x_gradient)}
    values |= {"gamma gradient": gradients[0][0].numpy(), "beta gradient": gradients[1][0].numpy()}
    return values | {variable.name: variable.numpy() for variable in layer.variables}


def assert_alike(values: dict, expected: dict, near: float) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=near, atol=near, err_msg=name)


@pytest.mark.parametrize("dtype", NEAR)
def test_outputs_and_moving_averages_are_those_of_keras_but_for_the_unbiased_variance(dtype):
    x = tf.constant(X, dtype)
    ours, theirs = layer_of(dtype=dtype), layer_of(keras.layers.BatchNormalization, dtype=dtype)
    near = {"rtol": 10 * NEAR[dtype], "atol": 10 * NEAR[dtype]}
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), **near)
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, **near)
    n = 8 * 4 * 4
    np.testing.assert_allclose(ours.moving_variance - 0.9, (theirs.moving_variance - 0.9) * n / (n - 1), **near)
    theirs.moving_variance.assign(ours.moving_variance)
    outputs = ours(x, training=False)
    assert outputs.dtype == dtype
    np.testing.assert_allclose(outputs, theirs(x, training=False), **near)


@pytest.mark.parametrize("dtype", NEAR)
def test_gradients_are_those_of_keras(dtype):
    x, gradients = tf.constant(X, dtype), []
    for layer in (layer_of(dtype=dtype), layer_of(keras.layers.BatchNormalization, dtype=dtype)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(layer(x, training=True) * tf.constant(TARGET, dtype))
        gradients.append(tape.gradient(value, [x, layer.gamma.value, layer.beta.value]))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=10 * NEAR[dtype], atol=10 * NEAR[dtype])


@pytest.mark.parametrize("dtype", NEAR)
def test_two_replicas_compute_what_one_does_with_the_whole_batch(dtype):
    assert_alike(trained(two_replicas(), dtype), trained(one_replica(), dtype), NEAR[dtype])


def test_the_elementary_operations_compute_what_the_kernel_does():
    assert_alike(trained(one_replica(), "float64"), trained(one_replica(), "float32"), NEAR["float32"])


def test_a_replica_on_its_own_normalises_its_share_and_the_moving_averages_are_the_mean():
    alone = trained(two_replicas(), "float64", steps=1, synchronized=False)
    halves = [trained(one_replica(), "float64", x=half, steps=1) for half in (X[:4], X[4:])]
    np.testing.assert_allclose(alone["outputs"], np.concatenate([half["outputs"] for half in halves]), rtol=1e-12)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(alone[name], (halves[0][name] + halves[1][name]) / 2, rtol=1e-12)
    together = trained(two_replicas(), "float64", steps=1)
    assert np.abs(alone["outputs"] - together["outputs"]).max() > 0.1


def test_a_large_mean_costs_no_digits_of_the_variance():
    far = X / 30 + 1000  # the squares are near 10^6 and their mean less the mean's square would have no digit left
    exact = np.var(far.astype(np.float32).astype(np.float64), axis=(0, 1, 2), ddof=1)
    values = trained(two_replicas(), "float32", x=far, steps=1)
    np.testing.assert_allclose((values["moving_variance"] - 0.9) / 0.1, exact, rtol=1e-3)


def test_activations_in_bfloat16_are_normalised_by_statistics_in_float32():
    policy = keras.DTypePolicy("mixed_bfloat16")
    strategy = two_replicas()
    with strategy.scope():
        shared = layer_of(dtype=policy)
    alone = layer_of(dtype=policy)
    x = tf.constant(X, tf.bfloat16)
    share = strategy.experimental_distribute_values_from_function(
        lambda context: x[4 * context.replica_id_in_sync_group :][:4]
    )
    run = tf.function(lambda share: strategy.run(lambda x: shared(x, training=True), (share,)), autograph=False)
    y = tf.concat(strategy.experimental_local_results(run(share)), axis=0)
    assert y.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(y, tf.float32), tf.cast(alone(x, training=True), tf.float32), atol=0.05)
    for variable, other in zip(shared.variables, alone.variables, strict=True):
        assert variable.dtype == "float32"
        np.testing.assert_allclose(variable, other, rtol=1e-5)


def test_it_is_saved_and_loaded_by_its_config(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 3)), BatchNormalization(False, momentum=0.8)])
    model.save(tmp_path / "m.keras")
    (layer,) = keras.models.load_model(tmp_path / "m.keras").layers
    assert type(layer) is BatchNormalization
    assert (layer.synchronized, layer.momentum) == (False, 0.8)
