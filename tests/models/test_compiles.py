"""A proxy for accelerators that are not here: every preset's training step is one XLA program of ops that are not
bound to the host."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels
from tensorflow.python.util import _pywrap_determinism

from models.options import Image, Options, Sentiment
from pipeline.presets import PRESETS
from pipeline.training import descent
from tests.models.graphs import operations
from tests.models.updates import Training

STEPS = 3
DYNAMIC = {"Where", "Unique", "UniqueV2", "DynamicPartition", "NonMaxSuppressionV4"}


@pytest.fixture(autouse=True)
def any_kernel():
    """Training in another test may have asked for deterministic ops, and XLA's gradient of max pooling is none."""
    before = _pywrap_determinism.is_enabled()
    _pywrap_determinism.enable(False)
    yield
    _pywrap_determinism.enable(before)


def small(options: Options) -> Options:
    """The same network, ops and all, with fewer units and layers of a kind."""
    if isinstance(options, Image):
        filters = tuple(n // 8 for n in options.filters)
        return dataclasses.replace(options, height=16, width=16, filters=filters, convolutions=1)
    if isinstance(options, Sentiment):
        return dataclasses.replace(options, vocabulary_size=20, max_tokens=6, embedding=8, units=4)
    return dataclasses.replace(options, factors=4)


def training_of(preset: str) -> Training:
    config = PRESETS[preset]()
    options = small(config.model)
    return Training(options, lambda: descent.optimizer_of(config.optimizer, steps_per_epoch=4, epochs=2))


NETWORKS = {
    repr((small(config.model), dataclasses.replace(config.optimizer, learning_rate=1.0))): preset
    for preset, config in ((preset, make()) for preset, make in PRESETS.items())
}
"""A preset for each network and optimizer that differ in more than sizes."""


def step_of(training: Training, jit: bool):
    """Augmentation, forward pass, loss, gradient and update: one function of fixed shapes."""
    return tf.function(training.update, jit_compile=jit, autograph=False).get_concrete_function(*training.arguments(0))


def bound_to_the_host(function) -> set[str]:
    """Ops that XLA lacks, or has for CPUs only, or whose results have shapes that depend on values or hold strings."""
    found = set()
    for operation in operations(function):
        devices = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(operation.type).kernel}
        strings = any(output.dtype == tf.string for output in operation.outputs)
        if operation.type != "Placeholder" and ("XLA_GPU_JIT" not in devices or operation.type in DYNAMIC or strings):
            found.add(operation.type)
    return found


ALIKE = ("cifar10-best", "digits-sample")  # other sizes of cifar10-fast and cifar10
EACH = [pytest.param(preset, marks=pytest.mark.slow if preset in ALIKE else ()) for preset in NETWORKS.values()]


@pytest.mark.parametrize("preset", EACH)
def test_the_training_step_of_a_preset_compiles_and_does_what_it_does_without_xla(preset):
    plain, compiled = training_of(preset), training_of(preset)
    losses = []
    for training, jit in ((plain, False), (compiled, True)):
        step = step_of(training, jit)
        losses.append([float(step(*training.arguments(number))) for number in range(STEPS)])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for value, other in zip(plain.values(), compiled.values(), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-3, atol=1e-4)
    assert bound_to_the_host(step) == set()


def test_the_check_sees_what_cannot_run_on_an_accelerator():
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), 0)

    @tf.function
    def function(text, x):
        x = tf.cond(x[0] > 0, lambda: tf.py_function(lambda value: value, [x], tf.float32), lambda: x)  # in a branch
        x = tf.ensure_shape(x, [1])
        return table.lookup(tf.strings.lower(text)), tf.boolean_mask(x, x > 0), tf.sort(x)

    found = bound_to_the_host(function.get_concrete_function(tf.constant(["A"]), tf.constant([1.0])))
    assert {"LookupTableFindV2", "StringLower", "EagerPyFunc", "Where"} <= found
    assert not found & {"TopKV2", "GatherV2", "Greater"}
