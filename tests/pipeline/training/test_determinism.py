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


def test_gradients_of_lists_that_several_loops_read_are_added_too():
    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape, determinism.sums_in_pairs():
            tape.watch(x)
            rows = tf.TensorArray(tf.float32, 3, clear_after_read=False).unstack(x)
            total = 0.0
            for power in (1.0, 2.0, 3.0):
                for i in tf.range(3):
                    total += tf.reduce_sum(rows.read(i) ** power)
            return tape.gradient(total, x)

    x = tf.constant([1.0, 2.0, 3.0])
    assert gradient(x).numpy().tolist() == [6.0, 17.0, 34.0]  # 1 + 2x + 3x^2


def test_nothing_puts_the_pairs_together_again():
    determinism.enable()
    assert tf.config.optimizer.get_experimental_options()["arithmetic_optimization"] is False
