"""One update of the weights, and many of them in one compiled call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from models import noise
from models.spec import ModelSpec
from pipeline.config import Config
from pipeline.training import descent, determinism
from pipeline.training.inputs import Part, batch, gathered


class Outcome(NamedTuple):
    """What a call of many updates tells. It ends with the first one whose loss or gradient is not finite."""

    loss: Any  # mean over the updates whose loss is finite
    norm: Any  # global norm of the last update's gradient, before clipping; under XLA where it was made alone, else 0
    count: Any  # how many updates the call came through, that one included
    bad: Any  # whether there was one
    shares: Any  # [batch]: what each example of the last update added to its loss; NaN or inf tells which one it was


def compiled(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, spec: ModelSpec, config: Config, strategy
) -> Callable[[Part, bool], Outcome]:
    """A function that makes the updates of a Part, and is told whether it is only one: between two of them nothing
    leaves its graph."""
    replicas = strategy.num_replicas_in_sync
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)

    def update(part: Part, i, last):
        inputs, target = batch(part, i, spec, config)
        with tf.GradientTape() as tape, noise.drawn(config.train.seed, part.step + tf.cast(i, tf.int64), part.first):
            outputs = model(inputs, training=True)
            losses = spec.loss(target, outputs, config.model)  # [share]
            shares = losses * tf.cast(part.weights[i], losses.dtype)  # [share]: this replica's part of the mean
            objective = tf.reduce_sum(shares)
            if model.losses:
                objective += sum(model.losses) / replicas
            objective = optimizer.scale_loss(objective) if scaled else objective
        gradients = tape.gradient(objective, model.trainable_variables)
        if replicas > 1:
            shares = tf.distribute.get_replica_context().all_gather(shares, 0)
            shares = tf.ensure_shape(shares, [config.train.batch_size])  # which workers do not know of each other
        finite = tf.math.is_finite(tf.reduce_sum(shares))
        norm, finite = descent.update(optimizer, gradients, model.trainable_variables, config, last, finite)
        return shares, norm, finite

    def traced(asked: bool | None) -> tf.types.experimental.PolymorphicFunction:
        """The updates of a Part; the norm of the last one's gradient where it is asked for (None: in any call)."""

        @tf.function(jit_compile=config.train.jit, reduce_retracing=not config.train.jit)
        def steps(part: Part) -> Outcome:
            part = gathered(part) if config.train.jit and not asked else part
            kind = "float64" if keras.config.floatx() == "float64" else "float32"
            total, norm = tf.constant(0.0, kind), tf.constant(0.0, kind)
            done, bad, shares = tf.constant(0), tf.constant(False), tf.zeros([config.train.batch_size], kind)
            count = tf.cast(part.count, tf.int32)
            for i in tf.range(count):
                with determinism.sums_in_pairs():
                    outcome = strategy.run(update, args=(part, i, i == count - 1 if asked is None else asked))
                shares, norm, finite = (strategy.experimental_local_results(value)[0] for value in outcome)  # all agree
                total += tf.where(finite, tf.reduce_sum(shares), 0.0)
                done, bad = i + 1, tf.logical_not(finite)
                if bad:
                    break
            finite_ones = tf.maximum(done - tf.cast(bad, tf.int32), 1)
            return Outcome(total / tf.cast(finite_ones, kind), norm, done, bad, shares)

        return steps

    if not config.train.jit:
        steps = traced(None)
        return lambda part, alone: steps(part)

    programs: dict[tuple, Callable[[Part], Outcome]] = {}

    def call(part: Part, alone: bool) -> Outcome:
        # A tf.function looks at all that it is given before each call, which takes as long as a dozen small updates.
        kind = (alone, *(leaf.shape for leaf in tf.nest.flatten(part)))
        if kind not in programs:
            programs[kind] = traced(alone).get_concrete_function(part)
        return programs[kind](part)

    return call
