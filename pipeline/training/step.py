"""One update of the weights, and many of them in one compiled call."""

from collections.abc import Callable

import keras
import tensorflow as tf

from models.spec import ModelSpec
from pipeline.config import Config
from pipeline.training import descent


def compiled(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    spec: ModelSpec,
    config: Config,
    strategy: tf.distribute.Strategy,
) -> Callable:
    """A compiled function (iterator, n) -> (mean loss of n updates, gradient norm of the last one)."""
    replicas = strategy.num_replicas_in_sync
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)

    def update(inputs: dict, target: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            loss = tf.reduce_sum(spec.loss(target, outputs, config.model) * weights)  # this replica's part of the mean
            objective = loss + tf.add_n(model.losses) / replicas if model.losses else loss
            objective = optimizer.scale_loss(objective) if scaled else objective
        # Dense: repeated rows of a table are summed before anything looks at their norm.
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(objective, model.trainable_variables)]
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            loss = context.all_reduce(tf.distribute.ReduceOp.SUM, loss)
        scale = tf.cast(optimizer.dynamic_scale, tf.float32) if scaled else 1.0
        gradients, norm = descent.clip([g / scale for g in gradients], config.optimizer)
        # Keras sums over the replicas once more inside apply; each hands in the same gradient, so each hands in its
        # share.
        optimizer.apply([g * scale / replicas for g in gradients], model.trainable_variables)
        return loss, norm

    if config.train.jit:
        update = tf.function(update, jit_compile=True)

    @tf.function(reduce_retracing=True)
    def steps(iterator, count):
        total, norm = tf.constant(0.0), tf.constant(0.0)
        for _ in tf.range(count):
            loss, norm = strategy.run(update, args=next(iterator))
            if replicas > 1:
                loss, norm = strategy.experimental_local_results(loss)[0], strategy.experimental_local_results(norm)[0]
            total += loss
        return total / tf.cast(count, tf.float32), norm

    return steps
