"""Claim: an embedding table learns at the cost of the rows in the batch, whatever its size.

    python benchmarks/sparse_rows.py [--rows 1000000]

A step looks 128 rows of 64 numbers up, takes the gradient of a squared error and applies it, in one tf.function.
Peers: keras.optimizers.Adam (and Adagrad, SGD) on keras.layers.Embedding, as users have it. Then the same step of ours
on tables of 1e5, 1e6 and 1e7 rows: the time must not grow.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from timing import table, turns

import custom_optimizers

BATCH, COLUMNS = 128, 64


def step_of(layer, optimizer, rows: int):
    """A call of one training step; ids are drawn inside the graph, so that no step meets warm rows."""
    layer.build((None,))
    optimizer.build(layer.trainable_variables)

    @tf.function
    def step():
        ids = tf.random.uniform([BATCH], 0, rows, tf.int32)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(layer(ids) - 1.0))
        optimizer.apply(tape.gradient(loss, layer.trainable_variables), layer.trainable_variables)
        return loss

    return step


def stock(optimizer, rows: int):
    return step_of(keras.layers.Embedding(rows, COLUMNS), optimizer, rows)


def ours(optimizer, rows: int):
    return step_of(custom_optimizers.SparseEmbedding(rows, COLUMNS), optimizer, rows)


def state_bytes(optimizer) -> int:
    """Bytes of what the optimizer keeps, its counter and learning rate aside."""
    return sum(int(np.prod(v.shape)) * 4 for v in optimizer.variables if v.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table of the comparison")
    rows = parser.parse_args().rows

    optimizers = {
        "keras Adam": keras.optimizers.Adam(),
        "keras Adagrad": keras.optimizers.Adagrad(),
        "keras SGD": keras.optimizers.SGD(),
        "LazyAdam": custom_optimizers.LazyAdam(),
        "RowWiseAdagrad": custom_optimizers.RowWiseAdagrad(),
        "Adagrad": custom_optimizers.Adagrad(),
    }
    steps = {n: (stock if n.startswith("keras") else ours)(o, rows) for n, o in optimizers.items()}
    spent = turns(steps)
    print(f"{rows:,} x {COLUMNS}, batch {BATCH}, whole step\n")
    table(
        [[name, ms, spent["keras Adam"] / ms, state_bytes(optimizers[name]) / rows] for name, ms in spent.items()],
        ["optimizer", "ms a step", "times faster than keras Adam", "state, bytes a row"],
    )
    del steps, optimizers

    print("\nThe same step on tables of different size, ms\n")
    sizes = (100_000, 1_000_000, 10_000_000)
    lines = []
    for name in ("LazyAdam", "RowWiseAdagrad"):
        # One table at a time: 1e7 rows of LazyAdam are 7.7 GB.
        times = [turns({"it": ours(getattr(custom_optimizers, name)(), size)})["it"] for size in sizes]
        lines.append([name, *times, times[-1] / times[0]])
    table(lines, ["optimizer", *(f"{size:,} rows" for size in sizes), "growth"])


if __name__ == "__main__":
    main()
