"""Claims about convolutions: the gradient over small images is that of Keras' layer, computed in another way."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.convolution import Convolution
from tests.models.graphs import operations

RANDOM = np.random.default_rng(0)


def step_of(layer: keras.layers.Layer, shape: tuple[int, ...], jit: bool = False):
    """The outputs, and the gradients by inputs and kernel, for inputs of a shape."""

    @tf.function(autograph=False, jit_compile=jit)
    def step(x, goal):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) * goal)
        return y, *tape.gradient(loss, [x, layer.kernel.value])

    layer.build(shape)
    goal = layer.compute_output_shape(shape)
    return step.get_concrete_function(tf.TensorSpec(shape, layer.compute_dtype), tf.TensorSpec(goal))


def used(function) -> set[str]:
    return {operation.type for operation in operations(function)}


@pytest.mark.parametrize(("size", "options"), [(3, {}), (3, {"padding": "valid", "use_bias": False}), (1, {})])
def test_outputs_and_gradients_over_small_images_are_those_of_keras(size, options):
    shape = (32, 6, 5, 3)  # more rows than columns: no axis may stand for another
    ours, theirs = (
        kind(4, size, dtype=dtype, **options)
        for kind, dtype in ((Convolution, "mixed_bfloat16"), (keras.layers.Conv2D, "float32"))
    )
    step, reference = step_of(ours, shape), step_of(theirs, shape)
    assert "Conv3D" in used(step)
    assert "Conv2DBackpropFilter" not in used(step)
    for variable, other in zip(ours.weights, theirs.weights, strict=True):
        value = tf.cast(RANDOM.normal(size=variable.shape), tf.bfloat16)  # the same in both
        variable.assign(tf.cast(value, tf.float32))
        other.assign(tf.cast(value, tf.float32))
    x = tf.cast(RANDOM.normal(size=shape), tf.bfloat16)
    goal = tf.cast(tf.cast(RANDOM.normal(size=theirs.compute_output_shape(shape)), tf.bfloat16), tf.float32)
    for value, expected in zip(step(x, goal), reference(tf.cast(x, tf.float32), goal), strict=True):
        largest = np.abs(expected).max()
        np.testing.assert_allclose(tf.cast(value, tf.float32), expected, rtol=2**-7, atol=2**-7 * largest)


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((32, 6, 5, 3), "float32", {}),
        ((32, 9, 9, 3), "mixed_bfloat16", {}),
        ((16, 6, 5, 3), "mixed_bfloat16", {}),
        ((None, 6, 5, 3), "mixed_bfloat16", {}),
        ((32, 6, 5, 3), "mixed_bfloat16", {"strides": 2}),
        ((32, 6, 5, 3), "mixed_bfloat16", {"dilation_rate": 2}),
    ],
)
def test_all_else_goes_the_way_of_keras(shape, dtype, options):
    assert "Conv3D" not in used(step_of(Convolution(4, 3, padding="same", dtype=dtype, **options), shape))


def test_under_xla_the_gradient_goes_the_way_of_keras():
    assert "Conv3D" not in used(step_of(Convolution(4, 3, dtype="mixed_bfloat16"), (32, 6, 5, 3), jit=True))
