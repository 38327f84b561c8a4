"""Claim: applying gradients costs little beside the memory that must be moved.

    python benchmarks/apply_cost.py

optimizer.apply in a tf.function, 160 variables of 128x128 and 160 of 16x16. The peer is keras.optimizers.Adam, the
floor is 28 bytes a parameter (Adam reads g, m, v, w and writes m, v, w) at the speed of numpy's copy in the same run.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from timing import table, turns

import custom_optimizers as ours

COUNT = 160
OPTIMIZERS = {
    "keras Adam": lambda: keras.optimizers.Adam(),
    "keras AdamW, global_clipnorm": lambda: keras.optimizers.AdamW(global_clipnorm=1.0),
    "Adam": lambda: ours.Adam(),
    "LazyAdam": lambda: ours.LazyAdam(),
    "AdamW, global_clipnorm": lambda: ours.AdamW(global_clipnorm=1.0),
    "Adagrad": lambda: ours.Adagrad(),
    "Cautious AdamW": lambda: ours.Cautious(ours.AdamW()),
    "ScheduleFreeAdamW": lambda: ours.ScheduleFreeAdamW(),
}


def copy_speed() -> float:
    """Bytes a second, read and written, of copying 64 MB."""
    source, target = np.ones(16_000_000, np.float32), np.empty(16_000_000, np.float32)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / sorted(times)[4]


def apply_of(optimizer, side: int):
    variables = [
        keras.Variable(np.random.default_rng(i).normal(size=(side, side)), dtype="float32") for i in range(COUNT)
    ]
    gradients = [tf.constant(np.random.default_rng(i).normal(size=(side, side)), tf.float32) for i in range(COUNT)]
    optimizer.build(variables)

    @tf.function
    def step():
        optimizer.apply(gradients, variables)

    return step


def main() -> None:
    speed = copy_speed()
    for side in (128, 16):
        floor = 28 * COUNT * side * side / speed * 1e3
        spent = turns({name: apply_of(make(), side) for name, make in OPTIMIZERS.items()})
        print(f"\n{COUNT} variables of {side}x{side}; floor {floor:.3g} ms at {speed / 1e9:.3g} GB/s\n")
        table(
            [[name, ms, ms / spent["keras Adam"], ms / floor] for name, ms in spent.items()],
            ["optimizer", "ms an update", "of keras Adam", "of the floor"],
        )


if __name__ == "__main__":
    main()
