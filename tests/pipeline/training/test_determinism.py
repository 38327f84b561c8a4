"""Claims about the same bits every time."""

import tensorflow as tf

from pipeline.training import determinism


def widest_sum(in_pairs: bool) -> int:
    """How many tensors the AddN of a gradient adds at once, at the most; 0 without any."""

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(x * x) + tf.reduce_sum(tf.sin(x)) + tf.reduce_sum(tf.exp(x))
        if not in_pairs:
            return tape.gradient(y, x)
        with determinism.sums_in_pairs():
            return tape.gradient(y, x)

    graph = gradient.get_concrete_function(tf.ones([3])).graph
    return max((len(op.inputs) for op in graph.get_operations() if op.type == "AddN"), default=0)


def test_gradients_from_many_consumers_are_added_two_at_a_time_and_only_inside():
    assert widest_sum(in_pairs=True) <= 2
    assert widest_sum(in_pairs=False) > 2  # else TensorFlow has changed, and this is no longer needed


def test_nothing_puts_the_pairs_together_again():
    determinism.enable()
    assert tf.config.optimizer.get_experimental_options()["arithmetic_optimization"] is False
