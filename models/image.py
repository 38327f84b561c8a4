"""Image classification: JPEG or PNG bytes -> class scores, by a convolutional network."""

import keras
import numpy as np
import tensorflow as tf

from models.analysis import ImageAnalysis
from models.convolution import Convolution
from models.noise import Dropout
from models.normalization import BatchNormalization
from models.options import Image
from models.spec import Features, ModelSpec, Tensors, class_index, full_precision, saved_variables


class Inputs(tf.Module):
    """image_bytes [batch] -> {"image": uint8 [batch, height, width, channels]}."""

    def __init__(self, options: Image, analysis: ImageAnalysis):
        super().__init__()
        self.size = (options.height, options.width)
        self.channels = options.channels

    def __call__(self, features: Features) -> Tensors:
        shape = tf.TensorSpec((*self.size, self.channels), tf.uint8)
        return {"image": tf.map_fn(self.decode, features["image_bytes"], fn_output_signature=shape)}

    def decode(self, data: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(data, self.channels, expand_animations=False)  # [h, w, channels] uint8
        image.set_shape([None, None, self.channels])
        return resize(image[None], self.size)[0]


def resize(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """uint8 [batch, h, w, c] -> uint8 [batch, *size, c], untouched where the size is right already."""
    fits = tf.reduce_all(tf.equal(tf.shape(images)[1:3], size))
    images = tf.cond(
        fits,
        lambda: images,
        lambda: tf.cast(tf.round(tf.image.resize(tf.cast(images, tf.float32), size, antialias=True)), tf.uint8),
    )
    return tf.ensure_shape(images, (None, *size, images.shape[-1]))


def target(features: Features, analysis: ImageAnalysis) -> tf.Tensor:
    return class_index(features["label"], analysis.classes)


def augment(inputs: Tensors, draws: tf.Tensor, options: Image) -> Tensors:
    """Mirrors where draws[:, 0] < 1/2; crops a window of the reflected, padded image at draws[:, 1:].

    Nothing is padded: each pixel is gathered once, from where it would come. That is seven times as fast.
    """
    h, w, p = options.height, options.width, options.crop
    offsets = tf.cast(draws[:, 1:3] * (2 * p + 1), tf.int32) - p  # [batch, 2]
    rows = _reflected(offsets[:, :1] + tf.range(h), h)  # [batch, h]
    columns = _reflected(offsets[:, 1:] + tf.range(w), w)  # [batch, w]
    if options.flip:
        columns = tf.where(draws[:, :1] < 0.5, w - 1 - columns, columns)
    pixels = tf.reshape(inputs["image"], [-1, h * w, options.channels])
    return {"image": tf.gather(pixels, rows[:, :, None] * w + columns[:, None, :], axis=1, batch_dims=1)}


def _reflected(places: tf.Tensor, size: int) -> tf.Tensor:
    """Places before 0 and after size - 1 as those that a mirror there shows."""
    places = tf.abs(places)
    return tf.minimum(places, 2 * (size - 1) - places)


def build(options: Image, analysis: ImageAnalysis) -> keras.Model:
    layers = keras.layers
    penalty = keras.regularizers.L1L2(options.l1, options.l2) if options.l1 or options.l2 else None
    shape = (options.height, options.width, options.channels)
    image = keras.Input(shape, dtype="uint8", name="image")
    mean, variance = 255 * np.array(analysis.mean), 255**2 * np.array(analysis.variance)  # of pixels in [0, 255]
    x = layers.Normalization((1, 2, 3), mean, variance)(image)  # arrays of an image's shape: a third of the time

    def convolve(x, filters: int, padding: str = "same"):
        return Convolution(
            filters,
            3,
            padding=padding,
            use_bias=not options.batch_norm,
            kernel_initializer="he_normal",
            kernel_regularizer=penalty,
        )(x)

    def activate(x, pooled: bool = False):
        if options.batch_norm:
            x = BatchNormalization(options.sync_batch_norm, momentum=0.9, epsilon=1e-5)(x)
        if pooled:
            x = layers.MaxPooling2D()(x)  # before ReLU, which it commutes with: a quarter of its work
        return layers.ReLU()(x)

    if options.stem:
        x = activate(convolve(x, options.stem, "valid"))
    for depth, filters in enumerate(options.filters):
        for number in range(options.convolutions):
            x = convolve(x, filters)
            if options.pool == "first" and number == 0:
                x = layers.MaxPooling2D()(x)  # before batch norm and ReLU: a quarter of their work too
            ends = number == options.convolutions - 1 and depth < len(options.filters) - 1
            x = activate(x, pooled=ends and options.pool == "last")
        if depth == len(options.filters) - 1:
            x = layers.GlobalAveragePooling2D()(x)
        x = Dropout(options.dropout)(x)
    logits = layers.Dense(len(analysis.classes), kernel_regularizer=penalty, dtype=full_precision())(x)
    return keras.Model({"image": image}, logits, name="image")


def loss(target: tf.Tensor, logits: tf.Tensor, options: Image) -> tf.Tensor:
    """Cross-entropy against (1 - s) * one_hot(target) + s / classes, s the label smoothing."""
    smoothing, classes = options.label_smoothing, logits.shape[-1]
    truth = tf.one_hot(target, classes, dtype=logits.dtype) * (1 - smoothing) + smoothing / classes  # [batch, classes]
    return tf.nn.softmax_cross_entropy_with_logits(truth, logits)  # [batch]


class Serving(tf.Module):
    """The signatures `serving_default` (image_bytes), `pixels` (image) and `classify` (tf.Example)."""

    def __init__(self, model: keras.Model, options: Image, analysis: ImageAnalysis):
        super().__init__()
        self.inputs, self.classes = Inputs(options, analysis), tf.constant(analysis.classes)
        self.weights = saved_variables(model)

        def scores(image: tf.Tensor) -> tf.Tensor:
            views = [image, image[:, :, ::-1]] if options.mirror else [image]
            logits = [model({"image": view}, training=False) for view in views]  # [batch, classes] each
            return tf.cast(tf.add_n([tf.nn.softmax(each) for each in logits]) / len(views), tf.float32)

        def answer(image: tf.Tensor) -> dict[str, tf.Tensor]:
            values = scores(image)
            return {"label": tf.gather(self.classes, tf.argmax(values, axis=1)), "scores": values}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
        def serving_default(image_bytes):
            return answer(self.inputs({"image_bytes": image_bytes})["image"])

        @tf.function(input_signature=[tf.TensorSpec([None, None, None, options.channels], tf.uint8, "image")])
        def pixels(image):
            return answer(resize(image, (options.height, options.width)))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def classify(inputs):
            features = tf.io.parse_example(inputs, {"image_bytes": tf.io.FixedLenFeature([], tf.string)})
            values = scores(self.inputs(features)["image"])
            classes = tf.repeat(self.classes[None], tf.shape(values)[0], axis=0)  # [batch, classes]
            return {"classes": classes, "scores": values}

        self.functions = {"serving_default": serving_default, "pixels": pixels, "classify": classify}


SPEC: ModelSpec[Image, ImageAnalysis] = ModelSpec(
    inputs=Inputs, target=target, build=build, loss=loss, serve=Serving, monitor="accuracy", draws=3, augment=augment
)
