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


def bare_kernel(side: int):
    """What is left when everything but TensorFlow's kernel is taken away: the least that one call a variable costs."""
    weights, m, v = ([tf.Variable(tf.ones([side, side])) for _ in range(COUNT)] for _ in range(3))
    gradients = [tf.constant(np.random.default_rng(i).normal(size=(side, side)), tf.float32) for i in range(COUNT)]
    numbers = {"beta1_power": 0.9, "beta2_power": 0.999, "lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}

    @tf.function
    def step():
        for var, first, second, grad in zip(weights, m, v, gradients, strict=True):
            tf.raw_ops.ResourceApplyAdam(var=var.handle, m=first.handle, v=second.handle, grad=grad, **numbers)

    return step


def main() -> None:
    speed = copy_speed()
    for side in (128, 16):
        floor = 28 * COUNT * side * side / speed * 1e3
        peers = {name: apply_of(make(), side) for name, make in OPTIMIZERS.items()}
        spent = turns({**peers, "TensorFlow's Adam kernel, bare": bare_kernel(side)})
        print(f"\n{COUNT} variables of {side}x{side}; floor {floor:.3g} ms at {speed / 1e9:.3g} GB/s\n")
        table(
            [[name, ms, ms / spent["keras Adam"], ms / floor] for name, ms in spent.items()],
            ["optimizer", "ms an update", "of keras Adam", "of the floor"],
        )


if __name__ == "__main__":
    main()
