"""Claims about the LSTM in one kernel: it is Keras' LSTM, forwards, backwards and in its gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import recurrence
from models.recurrence import BlockLSTM

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(5, 9, 3)).astype("float32")  # [batch, time, features]
MASK = np.arange(9) < np.array([9, 1, 4, 9, 6])[:, None]  # [batch, time]


def pair(wrap=lambda layer: layer, **options) -> list:
    """The same weights in both layers."""
    keras.utils.set_random_seed(3)
    layers = [wrap(kind(4, return_sequences=True, **options)) for kind in (keras.layers.LSTM, BlockLSTM)]
    for layer in layers:
        layer.build(X.shape)
    weights = [RANDOM.normal(size=w.shape).astype("float32") for w in layers[0].get_weights()]
    for layer in layers:
        layer.set_weights(weights)
    return layers


def outputs(layer, mask) -> tuple[np.ndarray, list[np.ndarray]]:
    """The states where there is text, and the gradients of a sum over them."""
    x = tf.constant(X)

    @tf.function
    def run():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, mask=mask)
            y = y if mask is None else tf.where(mask[:, :, None], y, 0.0)
            total = tf.reduce_sum(tf.sin(3.0 * y) + y * y)
        return y, tape.gradient(total, [x, *layer.trainable_variables])

    y, gradients = run()
    return y.numpy(), [g.numpy() for g in gradients]


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "bidirectional"])
def test_states_and_gradients_are_those_of_keras(bidirectional, mask):
    stock, ours = pair(keras.layers.Bidirectional if bidirectional else lambda layer: layer)
    mask = None if mask is None else tf.constant(mask)
    (y, gradients), (y2, gradients2) = outputs(stock, mask), outputs(ours, mask)
    np.testing.assert_allclose(y, y2, atol=2e-6)
    for one, other in zip(gradients, gradients2, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=2e-5)


def test_backwards_the_states_come_in_the_order_in_which_keras_hands_them_out():
    stock, ours = pair(go_backwards=True)
    np.testing.assert_allclose(stock(tf.constant(X)), ours(tf.constant(X)), atol=2e-6)
    text = MASK[:, ::-1, None]  # Keras hands the padding out first
    one, other = (layer(tf.constant(X), mask=tf.constant(MASK)) for layer in (stock, ours))
    np.testing.assert_allclose(tf.where(text, one, 0.0), tf.where(text, other, 0.0), atol=2e-6)


def test_the_kernel_is_used_on_a_cpu_and_not_under_xla_where_the_states_are_the_same():
    _, layer = pair()
    names = {}
    for jit in (False, True):
        function = tf.function(lambda x: layer(x), jit_compile=jit)
        graph = function.get_concrete_function(tf.constant(X)).graph
        names[jit] = {op.type for op in graph.get_operations()}
        states = function(tf.constant(X)).numpy()
        np.testing.assert_allclose(states, layer(tf.constant(X)), atol=2e-6)
    assert "BlockLSTMV2" in names[False]
    assert "BlockLSTMV2" not in names[True]


def test_what_the_kernel_cannot_do_goes_the_way_of_keras(monkeypatch):
    monkeypatch.setattr(BlockLSTM, "_states", lambda *_: pytest.fail("the kernel was asked"))
    for options in (
        {"activation": "relu"},
        {"use_bias": False},
        {"return_state": True},
        {"dropout": 0.5},
        {"dtype": "float64"},
    ):
        BlockLSTM(4, return_sequences=True, **options)(tf.constant(X))
    monkeypatch.setattr(recurrence, "on_cpu", lambda: False)
    BlockLSTM(4, return_sequences=True)(tf.constant(X))


def test_it_is_saved_and_loaded_by_its_config(tmp_path):
    layer = keras.layers.Bidirectional(BlockLSTM(4, return_sequences=True))
    model = keras.Sequential([keras.Input((None, 3)), layer])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(X), loaded(X))
