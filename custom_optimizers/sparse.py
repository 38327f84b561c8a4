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
    if _under_xla():
        return _summed_in_place(gradient.indices, gradient.values, shape[0])
    rows, place = tf.unique(gradient.indices)
    return rows, tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))


def _summed_in_place(ids, values, count: int):
    """The same with shapes that XLA knows: each row's sum stands in one of its places; the others hold a zero gradient
    for row `count`, which is none: XLA drops writes to it."""
    import tensorflow as tf

    n = tf.size(ids)
    if 0 < count <= _SMALL:  # the norm of a gradient is asked without its table
        places = tf.range(n)
        last = tf.tensor_scatter_nd_max(tf.fill([count], -1), ids[:, None], places)  # [count]: where a row comes last
        place = tf.gather(last, ids)  # [n]
        rows = tf.where(place == places, ids, tf.cast(count, ids.dtype))
        return rows, tf.math.unsorted_segment_sum(values, place, n)
    if ids.shape[0] is not None and ids.shape[0] <= _FEW:
        places = tf.range(n)
        place = tf.reduce_min(tf.where(ids[:, None] == ids[None, :], places[None, :], n), axis=1)  # [n]: first equal
        rows = tf.where(place == places, ids, tf.cast(count, ids.dtype))
        return rows, tf.math.unsorted_segment_sum(values, place, n)
    order = tf.argsort(ids, stable=True)
    ids, values = tf.gather(ids, order), tf.gather(values, order)
    first = tf.concat([[True], ids[1:] != ids[:-1]], axis=0)[:n]
    place = tf.cumsum(tf.cast(first, tf.int32)) - 1  # [n]: which of the different rows
    rows = tf.math.unsorted_segment_max(ids, place, n)
    live = tf.range(n) <= place[-1:]
    return tf.where(live, rows, tf.cast(count, ids.dtype)), tf.math.unsorted_segment_sum(values, place, n)


_SMALL = 2**15  # rows up to which a number for each of them costs less than comparing
_FEW = 512  # slices up to which comparing all pairs costs less than sorting


def _under_xla() -> bool:
    """Whether this is traced for jit_compile: no public name tells."""
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def live(rows, variable):
    """How many of the rows are rows of the variable."""
    return ops.sum(ops.cast(rows < variable.shape[0], "int32"))


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


def add(variable, rows, value) -> None:
    """Adds to rows, which may be named more than once."""
    import tensorflow as tf

    native(variable).scatter_add(tf.IndexedSlices(ops.cast(value, variable.dtype), rows))


def accumulate(variable, gradient) -> None:
    """variable += gradient."""
    if is_sparse(gradient):
        add(variable, gradient.indices, gradient.values)
    else:
        variable.assign(read(variable, None) + ops.cast(gradient, variable.dtype))


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
