"""Where an update runs: on every replica of a tf.distribute strategy, or simply here."""

import keras
from keras import ops

from custom_optimizers import sparse


def on_tensorflow() -> bool:
    return keras.backend.backend() == "tensorflow"


def sum_over_replicas(gradients: list) -> list:
    """The gradients summed over replicas, the same on each. Slices of sparse gradients are joined, not yet summed."""
    if not on_tensorflow():
        return gradients
    import tensorflow as tf

    if not tf.distribute.has_strategy():
        return gradients
    if tf.distribute.in_cross_replica_context():
        raise ValueError("apply must run in a replica: call it from a function given to strategy.run.")
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def everywhere(function, variables: list, gradients: list) -> None:
    """Runs function(gradients) once on every replica, with every variable meaning that replica's copy.

    All variables are updated inside ONE call, so that the function sees them together (global norms, Prodigy's sums)
    and may branch: a branch around tf.distribute's merge_call is what breaks accumulation in Keras.
    """
    if not on_tensorflow():
        function(gradients)
        return
    import tensorflow as tf

    # Traced as it stands: AutoGraph would rewrite every rule, to no end.
    plain = tf.autograph.experimental.do_not_convert(lambda _, *each: function(list(each)))
    if not tf.distribute.has_strategy():
        plain(None, *gradients)
        return

    def merged(strategy, *each):
        strategy.extended.update(sparse.native(variables[0]), plain, args=each, group=False)

    interim = tf.__internal__.distribute.interim
    interim.maybe_merge_call(merged, tf.distribute.get_strategy(), *gradients)


def when(condition, action, state: list) -> None:
    """Runs action() if the condition (a scalar tensor) holds; `state` lists every variable that it may write."""
    if on_tensorflow():
        import tensorflow as tf

        def run():
            action()
            return tf.constant(True)

        tf.cond(condition, run, lambda: tf.constant(False))
        return
    # A branch may not write variables here: compute, then choose.
    before = [ops.convert_to_tensor(variable) for variable in state]
    action()
    for variable, old in zip(state, before, strict=True):
        variable.assign(ops.where(condition, ops.convert_to_tensor(variable), old))
