"""Sparse gradients (tf.IndexedSlices): each row once, and reads and writes that touch those rows alone.

A lookup that reads row r in k examples hands over k slices for r. The gradient of the table is their sum, so anything
but addition (a square, a norm, a sign) is wrong until they are summed. Outside the TensorFlow backend a gradient is
never sparse, and TensorFlow is not imported.
"""

import keras
from keras import ops


def is_sparse(gradient) -> bool:
    return hasattr(gradient, "indices") and hasattr(gradient, "values")


def summed(gradient, stay_sparse: bool, shape: tuple):
    """(rows, gradient of these rows), each row once: [n] and [n, ...]; or (None, the whole gradient of that shape)."""
    if not is_sparse(gradient):
        return None, gradient
    import tensorflow as tf

    if not stay_sparse:
        return None, tf.math.unsorted_segment_sum(gradient.values, gradient.indices, shape[0])
    rows, place = tf.unique(gradient.indices)
    return rows, tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))


def read(variable, rows=None):
    """The variable, or the rows of it that are named: a gather that does not copy the table. Always a tensor.

    On TensorFlow Keras' convert_to_tensor hands a variable back as it is, so that a later write would change it.
    """
    if keras.backend.backend() != "tensorflow":
        return ops.convert_to_tensor(variable)
    import tensorflow as tf

    return tf.convert_to_tensor(native(variable)) if rows is None else tf.gather(native(variable), rows)


def write(variable, rows, value):
    value = ops.cast(value, variable.dtype)
    if rows is None:
        variable.assign(value)
        return
    import tensorflow as tf

    native(variable).scatter_update(tf.IndexedSlices(value, rows))


def accumulate(variable, gradient) -> None:
    """variable += gradient."""
    if not is_sparse(gradient):
        variable.assign(ops.convert_to_tensor(variable) + ops.cast(gradient, variable.dtype))
        return
    import tensorflow as tf

    values = tf.cast(gradient.values, variable.dtype)
    native(variable).scatter_add(tf.IndexedSlices(values, gradient.indices))


def mark(flags, gradient) -> None:
    """Sets the flags [rows] of the rows that a gradient touches: all of them for a dense one."""
    if not is_sparse(gradient):
        flags.assign(ops.ones(flags.shape, flags.dtype))
        return
    import tensorflow as tf

    ones = tf.ones_like(gradient.indices, dtype=flags.dtype)
    native(flags).scatter_update(tf.IndexedSlices(ones, gradient.indices))


def marked(flags):
    """The rows whose flag is set, [n]."""
    import tensorflow as tf

    return tf.where(ops.convert_to_tensor(flags) > 0)[:, 0]


def native(variable):
    """The backend's own variable inside a Keras one."""
    return variable.value if isinstance(variable, keras.Variable) else variable
