"""Claims about random numbers: uniform, and a pure function of where they are used."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import noise
from models.noise import Dropout, drawn

MANY = 1 << 18
SIGMA = 1 / np.sqrt(MANY)  # of a correlation


def rows(seed=3, epoch=0, examples=None, draws=3) -> np.ndarray:
    examples = np.arange(MANY) if examples is None else examples
    return noise.rows(seed, tf.constant(epoch, tf.int64), tf.constant(examples, tf.int64), draws).numpy()


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return abs(np.corrcoef(one, other)[0, 1])


def test_rows_are_uniform_in_every_column():
    draws = rows()
    assert draws.dtype == np.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=0), 1 / 2, atol=4 * SIGMA / np.sqrt(12))
    np.testing.assert_allclose(draws.var(axis=0), 1 / 12, atol=4 * SIGMA / np.sqrt(180))
    for column in draws.T:
        counts = np.bincount((column * 256).astype(int), minlength=256)
        chi_square = np.sum(np.square(counts - MANY / 256)) / (MANY / 256)
        assert abs(chi_square - 255) < 4 * np.sqrt(2 * 255)


def test_columns_neighbours_epochs_and_seeds_are_not_correlated():
    draws, later, other = rows(), rows(epoch=1), rows(seed=4)
    for i, column in enumerate(draws.T):
        others = [draws[:, i - 1], np.roll(column, 1), np.roll(column, 2), later[:, i], other[:, i]]
        assert max(correlation(column, against) for against in others) < 4 * SIGMA


def test_no_two_examples_share_their_bits():
    assert len(np.unique(noise._mix(tf.constant(np.arange(MANY), tf.uint32)))) == MANY


def test_a_rows_numbers_follow_the_example_and_not_its_place():
    examples = np.array([7, 123_456, 0, 7])
    np.testing.assert_array_equal(rows(examples=examples), rows()[examples])


def test_rows_are_the_same_in_a_graph_and_under_xla_and_in_every_version():
    def draw(epoch, examples):
        return noise.rows(11, epoch, examples, 2)

    arguments = tf.constant(2, tf.int64), tf.constant([0, 49_999], tf.int64)
    eager = draw(*arguments).numpy()
    for jit in (False, True):
        np.testing.assert_array_equal(tf.function(draw, jit_compile=jit, autograph=False)(*arguments), eager)
    np.testing.assert_array_equal(eager, PINNED)


PINNED = np.float32([[0.22595048, 0.09353888], [0.5661928, 0.6388798]])  # examples, columns


def mask(layer, inputs, seed=1, step=5, first=0, jit=False, calls=1) -> np.ndarray:
    """The outputs of `calls` calls of a layer in one forward pass, in a graph."""

    def run(step, first):
        with drawn(seed, step, first):
            return [layer(inputs, training=True) for _ in range(calls)]

    run = tf.function(run, jit_compile=jit, autograph=False)
    outputs = run(tf.constant(step, tf.int64), tf.constant(first))
    return outputs[0].numpy() if calls == 1 else np.stack(outputs)


ONES = tf.ones([8, 5, 3])  # 15 numbers an example: not whole blocks of four


def test_a_mask_depends_on_seed_update_and_layer_and_on_nothing_else():
    layer = Dropout(0.5)
    first = mask(layer, ONES)
    np.testing.assert_array_equal(first, mask(layer, ONES))
    np.testing.assert_array_equal(first, mask(Dropout(0.5), ONES))  # another name, another seed of Keras'
    one, other = mask(layer, ONES, calls=2)
    for different in (mask(layer, ONES, seed=2), mask(layer, ONES, step=6), other):
        assert 0.3 < np.mean(different == first) < 0.7
    np.testing.assert_array_equal(one, first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_masks_are_the_same_in_every_dtype_and_under_xla(dtype):
    layer, expected = Dropout(0.25, dtype=dtype), mask(Dropout(0.25), ONES) > 0
    for jit in (False, True):
        outputs = mask(layer, tf.cast(ONES, dtype), jit=jit)
        assert outputs.dtype == dtype
        np.testing.assert_array_equal(outputs > 0, expected)
        np.testing.assert_allclose(np.unique(outputs.astype(float)), [0, 4 / 3], rtol=1e-2)


@pytest.mark.parametrize("share", [1, 2, 4])
def test_shares_of_a_batch_get_the_masks_that_they_have_in_the_whole(share):
    layer, whole = Dropout(0.5), mask(Dropout(0.5), ONES)
    parts = [mask(layer, ONES[start : start + share], first=start) for start in range(0, 8, share)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_what_is_left_has_the_mean_of_what_was_given():
    outputs = mask(Dropout(0.3), tf.ones([500, 500]))
    np.testing.assert_allclose([np.mean(outputs), np.mean(outputs == 0)], [1, 0.3], atol=5e-3)
    np.testing.assert_allclose(np.corrcoef(outputs[1:].ravel(), outputs[:-1].ravel())[0, 1], 0, atol=1e-2)
    np.testing.assert_array_equal(mask(Dropout(0.0), ONES), ONES)


def test_noise_shape_drops_whole_channels_or_the_same_units_of_all_examples():
    channels = mask(Dropout(0.5, noise_shape=(None, 1, 3)), ONES)
    assert (channels == channels[:, :1]).all()
    assert len(np.unique(channels[:, 0], axis=0)) > 2
    layer = Dropout(0.5, noise_shape=(1, 5, 3))
    units = mask(layer, ONES)
    assert (units == units[:1]).all()
    np.testing.assert_array_equal(mask(layer, ONES[:4], first=4), units[:4])


def test_gradients_pass_where_units_were_kept():
    def gradient(step):
        with tf.GradientTape() as tape, drawn(1, step, tf.constant(0)):
            tape.watch(ONES)
            outputs = Dropout(0.5)(ONES, training=True)
        return outputs, tape.gradient(outputs, ONES)

    outputs, gradients = gradient(tf.constant(5, tf.int64))
    np.testing.assert_array_equal(outputs, gradients)


def test_outside_a_training_step_it_is_keras_dropout():
    keras.utils.set_random_seed(0)
    ours = Dropout(0.5, seed=3)
    theirs = keras.layers.Dropout(0.5, seed=3)
    with drawn(1, tf.constant(1), tf.constant(0)):
        np.testing.assert_array_equal(ours(ONES, training=False), ONES)
    for _ in range(2):
        np.testing.assert_array_equal(ours(ONES, training=True), theirs(ONES, training=True))


def test_it_is_saved_and_loaded_by_its_config(tmp_path):
    model = keras.Sequential([keras.Input((5, 3)), Dropout(0.4, noise_shape=(None, 1, 3))])
    model.save(tmp_path / "m.keras")
    (layer,) = keras.models.load_model(tmp_path / "m.keras").layers
    assert type(layer) is Dropout
    assert (layer.rate, layer.noise_shape) == (0.4, (None, 1, 3))
