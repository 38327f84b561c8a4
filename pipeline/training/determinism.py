"""The same bits every time: TensorFlow's op determinism, and what it leaves out.

AddN of three tensors or more adds them in the order in which it may reuse their memory, and that depends on timing.
Nobody need write one: the gradient of a tensor with three consumers is an AddN, and Grappler makes one of a chain of
additions.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf
from tensorflow.python.ops import gen_math_ops  # where the tape looks its AddN up: it takes no aggregation of ours


def enable() -> None:
    """For the process. Operations without a deterministic kernel raise from now on; none is slower for the rest."""
    tf.config.experimental.enable_op_determinism()
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})


@contextmanager
def sums_in_pairs() -> Iterator[None]:
    """What is traced inside adds two tensors at a time, from the first to the last."""
    add_n = gen_math_ops.add_n
    # AddN of two, since tf.add takes no lists of tensors (variants), which a gradient through a loop adds up.
    gen_math_ops.add_n = lambda inputs, name=None: functools.reduce(lambda a, b: add_n([a, b]), inputs)
    try:
        yield
    finally:
        gen_math_ops.add_n = add_n
