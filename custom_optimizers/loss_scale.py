"""Loss scaling that sees an overflow on any replica."""

import keras
from keras import ops, saving


@saving.register_keras_serializable("minibatch")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras' LossScaleOptimizer, except that an inf or NaN on ANY replica skips the step on all and halves the scale.

    Keras asks the first replica only. Give it to compile(optimizer=...) with mixed_float16 under a strategy: what Keras
    wraps by itself is its own. Takes any Keras optimizer; the arguments are Keras'.
    """

    def _tf_apply(self, grads, trainable_variables=None):
        import tensorflow as tf

        if tf.distribute.in_cross_replica_context():
            raise ValueError("apply must run in a replica: call it from a function given to strategy.run.")
        if not tf.distribute.has_strategy():
            self._common_apply(grads, trainable_variables)
            return
        overflows = tf.cast(tf.logical_not(self.check_finite(grads)), tf.float32)
        context = tf.distribute.get_replica_context()
        finite = context.all_reduce(tf.distribute.ReduceOp.SUM, overflows) < 0.5

        def merged(strategy, grads, variables, finite):
            # The branch must be outside the replicas: inside, tf.distribute cannot merge them.
            finite = strategy.experimental_local_results(finite)[0]
            apply = self._stateful_handle_finite_grads
            ops.cond(
                finite,
                lambda: strategy.extended.call_for_each_replica(apply, args=(grads, variables)),
                self._stateful_handle_non_finite_grads,
            )

        interim = tf.__internal__.distribute.interim
        interim.maybe_merge_call(merged, tf.distribute.get_strategy(), grads, trainable_variables, finite)

    def check_finite(self, grads):
        """Whether every element is finite; None and sparse gradients are allowed."""
        values = [getattr(g, "values", g) for g in grads if g is not None]
        return ops.all(ops.stack([ops.all(ops.isfinite(value)) for value in values]))
