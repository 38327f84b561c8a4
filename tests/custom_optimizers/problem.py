"""What the tests of all optimizers descend on: a small model with every kind of variable that rules treat apart.

Open loop: stored gradients, so that two runs see the same ones. Closed loop: a loss over examples, for replicas.
"""

import keras
import numpy as np
import tensorflow as tf

ROWS = 6
SHAPES = {"table": (ROWS, 2), "kernel": (2, 3), "conv": (2, 2, 1, 3), "bias": (3,), "scale": ()}
TRAINED = {"table": (ROWS, 3), "conv": (2, 2, 1, 3), "bias": (3,)}  # the loss below is of these
SMALL = {"table": (ROWS, 2), "bias": (3,)}
BATCH = 4


def variables(shapes=None, dtype="float32", seed=0) -> list:
    source = np.random.default_rng(seed)
    shapes = SHAPES if shapes is None else shapes
    return [keras.Variable(source.normal(size=shape), dtype=dtype, name=name) for name, shape in shapes.items()]


def built(optimizer, variables):
    optimizer.build(variables)
    return optimizer


def gradients(steps=4, shapes=None, ids=None, seed=1) -> list[list]:
    """For each step a gradient for each variable; that of the table is (ids, slices), with rows repeated and absent.

    `ids` gives the ids of each step.
    """
    source = np.random.default_rng(seed)
    shapes = SHAPES if shapes is None else shapes
    ids = [[step % 3, 4, step % 3, 4, 4] for step in range(steps)] if ids is None else ids
    stored = []
    for rows in ids:
        rows = np.asarray(rows, "int64")
        row = [source.normal(size=shape) for name, shape in shapes.items() if name != "table"]
        slices = source.normal(size=(len(rows), *shapes["table"][1:]))  # [ids, columns]
        stored.append([(rows, slices), *row])
    return stored


def summed(gradient):
    """The same sparse gradient with each row once, or the gradient itself if it is dense."""
    if not isinstance(gradient, tuple):
        return gradient
    ids, slices = gradient
    rows, place = np.unique(ids, return_inverse=True)
    total = np.zeros((len(rows), *slices.shape[1:]))
    np.add.at(total, place, slices)
    return rows, total


def dense(gradient):
    """The same gradient of the table, all rows, or the gradient itself if it is dense."""
    if not isinstance(gradient, tuple):
        return gradient
    ids, slices = gradient
    whole = np.zeros((ROWS, *slices.shape[1:]))
    np.add.at(whole, ids, slices)
    return whole


def tensors(row: list, dtype="float32", id_type="int64") -> list:
    """The gradients of one step as apply takes them."""
    return [_tensor(gradient, dtype, id_type) for gradient in row]


def _tensor(gradient, dtype, id_type):
    if gradient is None or not isinstance(gradient, tuple):
        return None if gradient is None else tf.constant(gradient, dtype)
    ids, slices = gradient
    return tf.IndexedSlices(tf.constant(slices, dtype), tf.constant(ids, id_type), (ROWS, *slices.shape[1:]))


def descend(optimizer, variables: list, stored: list[list], dtype="float32", id_type="int64") -> list[list]:
    """Applies stored gradients one by one; the weights after each."""
    path = []
    for row in stored:
        optimizer.apply(tensors(row, dtype, id_type), variables)
        path.append(values(variables))
    return path


def values(variables: list) -> list:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def far(a, b) -> float:
    """The largest difference of two lists (of lists) of arrays, measured by the largest number of b; NaN is far."""
    a, b = flat(a), flat(b)
    assert a.shape == b.shape
    if not a.size:
        return 0.0
    assert np.all(np.isfinite(b)), "the trajectory to compare with is not finite"
    return float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b)))) if np.all(np.isfinite(a)) else float("inf")


def flat(nested) -> np.ndarray:
    if isinstance(nested, list | tuple):
        return np.concatenate([flat(each) for each in nested]) if nested else np.zeros(0)
    return np.ravel(np.asarray(nested, "float64"))


def batches(steps=6, dtype="float64", seed=2) -> list[tuple]:
    """(ids, images, targets) of each step; rows repeat within an example, within a batch and across its halves."""
    source = np.random.default_rng(seed)
    made = []
    for _ in range(steps):
        ids = source.integers(0, 3, (BATCH, 2))
        ids[0], ids[-1] = 4, 4
        images, targets = source.normal(size=(BATCH, 2, 2, 1)), source.normal(size=BATCH)
        made.append((ids, images.astype(dtype), targets.astype(dtype)))
    return made


def loss(weights: list, ids, images, targets, examples=BATCH):
    """The squared error of some examples over the number of all: replicas' losses add up to that of the batch."""
    table, conv, bias = weights
    seen = tf.reduce_sum(tf.gather(table, ids), axis=1) + tf.einsum("nijc,ijco->no", images, conv)  # [examples, 3]
    hidden = tf.tanh(seen + bias)  # its slope differs between outputs: the gradient of conv has full rank
    return tf.reduce_sum(tf.square(tf.reduce_sum(hidden, axis=1) - targets)) / examples


def train_step(optimizer, variables: list, ids, images, targets, whole=False) -> None:
    """One closed-loop update; `whole` hands the gradient of the table over as a dense one."""
    weights = [variable.value for variable in variables]
    with tf.GradientTape() as tape:
        value = optimizer.scale_loss(loss(weights, ids, images, targets))
    table, *others = tape.gradient(value, weights)
    table = tf.math.unsorted_segment_sum(table.values, table.indices, ROWS) if whole else table
    optimizer.apply([table, *others], variables)


def numbers(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def stored(shapes, steps=30, seed=1) -> list[list[np.ndarray]]:
    """A gradient of each shape for each step."""
    source = np.random.default_rng(seed)
    return [[source.normal(size=shape) for shape in shapes.values()] for _ in range(steps)]


def path(optimizer, shapes, gradients, dtype="float64"):
    """The weights after each step of an optimizer that is not built yet."""
    made = variables(shapes, dtype=dtype)
    return descend(built(optimizer, made), made, gradients, dtype)
