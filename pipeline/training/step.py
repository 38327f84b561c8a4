"""One update of the weights, and many of them in one compiled call."""

from collections.abc import Callable

import keras
import tensorflow as tf

from models.spec import ModelSpec
from pipeline.config import Config
from pipeline.training import descent
from pipeline.training.inputs import Part


def compiled(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    spec: ModelSpec,
    config: Config,
    strategy: tf.distribute.Strategy,
    batch: Callable,
) -> Callable[[Part], tuple[tf.Tensor, tf.Tensor]]:
    """A function from a part of an epoch to (mean loss of its updates, gradient norm of the last one).

    `batch` gathers inputs and target from row numbers, inside the same graph: between two updates nothing leaves it.
    """
    replicas = strategy.num_replicas_in_sync
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)

    def update(numbers, weights, draws, i, last) -> tuple[tf.Tensor, tf.Tensor]:
        inputs, target = batch(numbers[i], draws[i])
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            losses = spec.loss(target, outputs, config.model)  # [share]
            loss = tf.reduce_sum(losses * weights[i])  # this replica's part of the mean
            objective = loss + tf.add_n(model.losses) / replicas if model.losses else loss
            objective = optimizer.scale_loss(objective) if scaled else objective
        gradients = tape.gradient(objective, model.trainable_variables)
        norm = descent.update(optimizer, gradients, model.trainable_variables, config.optimizer, last)
        if replicas > 1:
            loss = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, loss)
        return loss, norm

    @tf.function(jit_compile=config.train.jit)
    def steps(numbers, weights, draws, count):
        total, norm = tf.constant(0.0), tf.constant(0.0)
        for i in tf.range(count):
            loss, norm = strategy.run(update, args=(numbers, weights, draws, i, i == count - 1))
            if replicas > 1:
                loss, norm = strategy.experimental_local_results(loss)[0], strategy.experimental_local_results(norm)[0]
            total += loss
        return total / tf.cast(count, tf.float32), norm

    return lambda part: steps(part.numbers, part.weights, part.draws, part.count)
