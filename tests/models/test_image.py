"""Claims about the image task."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import image
from models.analysis import ImageAnalysis
from models.options import Image

OPTIONS = Image(height=8, width=8, filters=(4, 8), convolutions=1, flip=True, crop=2)
ANALYSIS = ImageAnalysis(("dark", "light"), (0.5, 0.5, 0.5), (0.08, 0.08, 0.08))


def pixels(count: int = 6, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_png_bytes_become_exactly_the_pixels_that_were_encoded():
    images = pixels()
    data = tf.stack([tf.io.encode_png(i) for i in images])
    np.testing.assert_array_equal(image.Inputs(OPTIONS, ANALYSIS)({"image_bytes": data})["image"], images)


def test_images_of_another_size_are_resized_to_the_models_size():
    flat = np.full((2, 20, 30, 3), 77, np.uint8)
    data = tf.stack([tf.io.encode_png(i) for i in flat])
    resized = image.Inputs(OPTIONS, ANALYSIS)({"image_bytes": data})["image"]
    np.testing.assert_array_equal(resized, np.full((2, 8, 8, 3), 77))


def test_augmentation_mirrors_by_the_first_draw_and_crops_by_the_others():
    images = tf.constant(pixels(2))
    centre = 2 / 5 + 0.01  # offset 2 of 0..4: the crop that undoes a padding of 2
    draws = tf.constant([[0.9, centre, centre], [0.1, centre, centre]], tf.float32)
    out = image.augment({"image": images}, draws, OPTIONS)["image"].numpy()
    np.testing.assert_array_equal(out[0], images[0])
    np.testing.assert_array_equal(out[1], images[1].numpy()[:, ::-1])


def test_a_crop_is_a_window_of_the_reflected_padding():
    options = dataclasses.replace(OPTIONS, flip=False)
    images = pixels(3)
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)], "reflect")
    draws = tf.constant([[0, 0.0, 0.0], [0, 0.99, 0.0], [0, 0.3, 0.7]], tf.float32)
    out = image.augment({"image": tf.constant(images)}, draws, options)["image"].numpy()
    for i, (row, column) in enumerate([(0, 0), (4, 0), (1, 3)]):
        np.testing.assert_array_equal(out[i], padded[i, row : row + 8, column : column + 8])


def test_label_smoothing_zero_is_the_plain_cross_entropy_and_more_costs_a_confident_answer():
    logits, target = tf.constant([[0.0, 4.0]]), tf.constant([1])
    plain = image.loss(target, logits, OPTIONS)
    np.testing.assert_allclose(plain, [np.log1p(np.exp(-4.0))], rtol=1e-5)
    smooth = image.loss(target, logits, dataclasses.replace(OPTIONS, label_smoothing=0.2))
    np.testing.assert_allclose(smooth, [np.log1p(np.exp(-4.0)) + 0.1 * 4.0], rtol=1e-5)


def test_weight_penalties_are_the_weighted_sums_over_the_kernels():
    model = image.build(dataclasses.replace(OPTIONS, l1=0.1, l2=0.01), ANALYSIS)
    kernels = [w.numpy() for w in model.trainable_variables if w.name == "kernel"]
    expected = sum(0.1 * np.abs(k).sum() + 0.01 * np.square(k).sum() for k in kernels)
    np.testing.assert_allclose(sum(model.losses), expected, rtol=1e-5)
    assert len(kernels) == 3
    assert not image.build(OPTIONS, ANALYSIS).losses


def test_bytes_pixels_and_examples_of_one_image_get_the_same_scores():
    serving = image.Serving(image.build(OPTIONS, ANALYSIS), OPTIONS, ANALYSIS)
    images = pixels(3)
    data = [tf.io.encode_png(i).numpy() for i in images]
    example = tf.train.Example(
        features=tf.train.Features(
            feature={"image_bytes": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data[1]]))}
        )
    )
    by_bytes = serving.functions["serving_default"](tf.constant(data))
    by_pixels = serving.functions["pixels"](tf.constant(images))
    by_example = serving.functions["classify"](tf.constant([example.SerializeToString()]))
    np.testing.assert_array_equal(by_bytes["scores"], by_pixels["scores"])
    np.testing.assert_allclose(by_example["scores"][0], by_bytes["scores"][1], rtol=1e-5)
    np.testing.assert_allclose(np.sum(by_bytes["scores"], axis=1), 1, rtol=1e-5)
    assert [label.decode() for label in by_bytes["label"].numpy()] == [
        ANALYSIS.classes[i] for i in np.argmax(by_bytes["scores"], axis=1)
    ]


def test_a_stem_and_early_pooling_leave_the_stages_the_sizes_that_they_are_made_for():
    options = Image(height=18, width=22, filters=(4, 8, 8), stem=5, pool="first")
    model = image.build(options, ANALYSIS)
    shapes = [tuple(layer.output.shape[1:]) for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert shapes == [(16, 20, 5), (16, 20, 4), (8, 10, 4), (8, 10, 8), (4, 5, 8), (4, 5, 8), (2, 2, 8)]


def test_early_pooling_keeps_the_largest_of_each_square_of_a_stages_first_convolution():
    options = Image(height=4, width=4, filters=(3,), convolutions=1, pool="first", batch_norm=False, dropout=0.0)
    model, images = image.build(options, ANALYSIS), pixels(2, 4)
    convolution, _, _, pooled = model.layers[2:6]
    before, after = keras.Model(model.input, [convolution.output, pooled.output])({"image": images})
    squares = np.reshape(before, (2, 2, 2, 2, 2, 3)).max(axis=(2, 4))  # [batch, row, column, channels]
    np.testing.assert_allclose(after, np.maximum(squares, 0).mean(axis=(1, 2)), rtol=1e-5)


def test_late_pooling_keeps_the_largest_activation_of_each_square_of_a_stage_but_the_last():
    options = Image(height=4, width=4, filters=(3, 2), convolutions=2, batch_norm=False, dropout=0.0)
    model, images = image.build(options, ANALYSIS), pixels(2, 4)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [tuple(layer.output.shape[1:3]) for layer in convolutions] == [(4, 4), (4, 4), (2, 2), (2, 2)]
    before, after = keras.Model(model.input, [convolutions[1].output, convolutions[2].input])({"image": images})
    squares = np.reshape(np.maximum(before, 0), (2, 2, 2, 2, 2, 3))  # [batch, row, 2, column, 2, channels]
    np.testing.assert_array_equal(after, squares.max(axis=(2, 4)))


@pytest.mark.parametrize("mirror", [False, True])
def test_mirrored_scores_are_those_of_the_image_and_its_mirror_image_in_the_mean(mirror):
    options, images = dataclasses.replace(OPTIONS, mirror=mirror), pixels(3)
    model = image.build(options, ANALYSIS)
    one, other = (tf.nn.softmax(model({"image": each})) for each in (images, images[:, :, ::-1]))
    scores = image.Serving(model, options, ANALYSIS).functions["pixels"](tf.constant(images))["scores"]
    np.testing.assert_allclose(scores, (one + other) / 2 if mirror else one, rtol=1e-5)
    assert np.abs(one - other).max() > 1e-4
