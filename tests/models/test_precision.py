"""Claims about dtypes: under the float64 policy nothing inside a model is rounded to less."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers
from tests.models.graphs import operations
from tests.models.updates import SMALL, Training, policy

LOWER = {tf.float32, tf.bfloat16, tf.float16}


def function_of(training: Training):
    """Loss and gradients in a graph, and what it takes: the target and (before it) augmentation are float32."""
    inputs, target, _, step = training.arguments(0)
    arguments = inputs, target if target.dtype.is_integer else tf.cast(target, tf.float64), step
    return tf.function(training.gradients, autograph=False).get_concrete_function(*arguments), arguments


@pytest.mark.parametrize("task", SMALL)
def test_in_float64_every_weight_gradient_and_tensor_between_is_float64(task):
    with policy("float64"):
        training = Training(SMALL[task], lambda: custom_optimizers.Momentum(0.05))
        function, _ = function_of(training)
    loss, gradients = function.structured_outputs
    assert {loss.dtype, *(gradient.dtype for gradient in gradients)} == {tf.float64}
    assert {variable.dtype for variable in training.model.trainable_variables} == {"float64"}
    outputs = [output for operation in operations(function) for output in operation.outputs]
    assert not [
        x.name for x in outputs if x.dtype in LOWER and x.shape.rank != 0
    ]  # settings are scalars, read as float32


def test_in_float64_pixels_are_normalised_by_constants_of_all_digits():
    with policy("float64"):
        training = Training(SMALL["image"], lambda: custom_optimizers.Momentum(0.05))
    (layer,) = (layer for layer in training.model.layers if isinstance(layer, keras.layers.Normalization))
    image = training.arguments(0)[0]["image"].numpy()
    np.testing.assert_allclose(layer(image), (image / 255 - 0.47) / np.sqrt(0.08), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("task", SMALL)
def test_in_float64_gradients_agree_with_differences_of_the_loss_to_eight_digits(task):
    with policy("float64"):
        training = Training(SMALL[task], lambda: custom_optimizers.Momentum(0.05))
        function, arguments = function_of(training)
    weights = [variable.value for variable in training.model.trainable_variables]
    random = np.random.default_rng(1)
    start = [random.normal(0, 0.5, weight.shape) for weight in weights]
    direction = [random.normal(size=weight.shape) for weight in weights]

    def at(distance: float):
        for weight, origin, towards in zip(weights, start, direction, strict=True):
            weight.assign(origin + distance * towards)
        return function(*arguments)

    _, gradients = at(0.0)
    slope = sum(np.sum(tf.convert_to_tensor(g) * d) for g, d in zip(gradients, direction, strict=True))
    step = 2e-6
    np.testing.assert_allclose((at(step)[0] - at(-step)[0]) / (2 * step), slope, rtol=1e-8)


@pytest.mark.parametrize("mixed", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("task", SMALL)
def test_in_mixed_precision_weights_outputs_and_losses_stay_float32(task, mixed):
    with policy(mixed):
        training = Training(SMALL[task], lambda: custom_optimizers.Momentum(0.05))
        inputs, target, _, _ = training.arguments(0)
        outputs = training.model(inputs, training=True)
    losses = training.spec.loss(target, outputs, training.options)
    assert {output.dtype for output in tf.nest.flatten((outputs, losses))} == {tf.float32}
    assert {variable.dtype for variable in training.model.trainable_variables} == {"float32"}
    assert np.isfinite(losses).all()
