"""Batch normalisation over the global batch, on one replica by TensorFlow's fused kernel.

Keras 3 computes it from elementary operations on TensorFlow, which costs 30 of 107 ms in a training step of a small
CNN; the kernel computes the same numbers in one pass each way. It sees one replica's share only and has no float64:
there the elementary operations stay.
"""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("minibatch")
class BatchNormalization(keras.layers.BatchNormalization):
    """y = gamma * (x - mean) / sqrt(variance + epsilon) + beta over all but the last axis of x [batch, h, w, channels].

    Training takes mean and variance of the global batch, so that N replicas compute what one does; not `synchronized`,
    each takes those of its share (cheaper, other numbers), and the moving averages take their mean over the replicas.

    Activations may be bfloat16; statistics and parameters stay float32, or float64 under that policy. As in the kernel,
    the moving variance takes the unbiased estimate (n / (n - 1) times the batch variance), where Keras' own layer takes
    the biased one.
    """

    def __init__(self, synchronized: bool = True, **options):
        super().__init__(synchronized=synchronized, **options)

    def call(self, inputs, training=None, mask=None):
        double = self.compute_dtype == "float64"
        scale, offset, mean, variance = (
            tf.cast(value, tf.float64 if double else tf.float32)
            for value in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )  # each [channels]
        training = bool(training and self.trainable)
        context = tf.distribute.get_replica_context()  # none where a model is built
        replicas = tf.distribute.get_strategy().num_replicas_in_sync if training and context else 1
        if not double and (replicas == 1 or not self.synchronized):
            outputs, mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
                x=inputs,
                scale=scale,
                offset=offset,
                mean=[] if training else mean,
                variance=[] if training else variance,
                epsilon=self.epsilon,
                is_training=training,
            )
        else:
            x = tf.cast(inputs, scale.dtype)
            if training:
                count, mean, variance = moments(x, replicas if self.synchronized else 1)
                unbiased = variance * count / tf.maximum(count - 1, 1)
            outputs = tf.cast((x - mean) * (scale * tf.math.rsqrt(variance + self.epsilon)) + offset, inputs.dtype)
        if training:
            if replicas > 1 and not self.synchronized:  # the moving averages stay the same on all replicas
                mean, unbiased = context.all_reduce(tf.distribute.ReduceOp.MEAN, [mean, unbiased])
            for average, value in ((self.moving_mean, mean), (self.moving_variance, unbiased)):
                average.assign(average * self.momentum + value * (1.0 - self.momentum))
        return outputs


def moments(x: tf.Tensor, replicas: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Count, mean and (biased) variance over all but the last axis of every replica's x, each [channels].

    One sum over the replicas brings every replica's own moments to all; they are combined as by Chan, Golub and
    LeVeque, since the mean of the squares less the square of the mean cancels in float32 where the mean is large.
    """
    mean, variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))  # [channels]
    count = tf.ones_like(mean) * tf.cast(tf.size(x) // x.shape[-1], x.dtype)
    if replicas == 1:
        return count, mean, variance
    context = tf.distribute.get_replica_context()
    place = tf.one_hot(context.replica_id_in_sync_group, replicas, dtype=x.dtype)  # [replicas]
    shares = place[:, None, None] * tf.stack([count, mean, variance])  # [replicas, 3, channels]
    counts, means, variances = tf.unstack(context.all_reduce(tf.distribute.ReduceOp.SUM, shares), axis=1)
    count = tf.reduce_sum(counts, axis=0)
    mean = tf.reduce_sum(counts * means, axis=0) / count
    return count, mean, tf.reduce_sum(counts * (variances + tf.square(means - mean)), axis=0) / count
