"""One update of the weights, and many of them in one compiled call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from models import noise
from models.spec import ModelSpec
from pipeline.config import Config
from pipeline.training import descent, determinism
from pipeline.training.inputs import Part, batch


class Outcome(NamedTuple):
    """What a call of many updates tells."""

    loss: Any  # mean over the updates that were made
    norm: Any  # global norm of the last update's gradient, before clipping
    skipped: Any  # how many updates were left out, since loss or gradient were not finite
    bad: Any  # which update of the call was the first whose loss or known gradient is not finite, or -1
    shares: Any  # [batch]: what each example of that update added to its loss; NaN or inf tells which one it was


def compiled(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, spec: ModelSpec, config: Config, strategy
) -> Callable[[Part], Outcome]:
    """A function that makes the updates of a Part: between two of them nothing leaves its graph."""
    replicas = strategy.num_replicas_in_sync
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    skips = config.train.non_finite == "skip"

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
            shares = tf.distribute.get_replica_context().all_gather(shares, 0)  # [batch]
        finite = tf.math.is_finite(tf.reduce_sum(shares))
        norm, finite = descent.update(
            optimizer, gradients, model.trainable_variables, config.optimizer, last, finite if skips else None
        )
        return shares, norm, finite

    @tf.function(jit_compile=config.train.jit, reduce_retracing=not config.train.jit)
    def steps(part: Part) -> Outcome:
        kind = "float64" if keras.config.floatx() == "float64" else "float32"
        total, norm = tf.constant(0.0, kind), tf.constant(0.0, kind)
        skipped, bad, shares = tf.constant(0), tf.constant(-1), tf.zeros([config.train.batch_size], kind)
        count = tf.cast(part.count, tf.int32)
        for i in tf.range(count):
            with determinism.sums_in_pairs():
                outcome = strategy.run(update, args=(part, i, i == count - 1))
            each, norm, finite = (strategy.experimental_local_results(value)[0] for value in outcome)  # all agree
            loss = tf.reduce_sum(each)
            made = finite if skips else True
            total += tf.where(made, loss, 0.0)
            skipped += tf.cast(tf.logical_not(made), tf.int32)
            # A scaled gradient may overflow: loss scaling leaves that update out by itself.
            finite = tf.math.is_finite(loss) & made & (scaled or tf.math.is_finite(norm))
            shares = tf.where((bad < 0) & ~finite, each, shares)
            bad = tf.where((bad < 0) & ~finite, i, bad)
        return Outcome(total / tf.cast(tf.maximum(count - skipped, 1), kind), norm, skipped, bad, shares)

    return steps
