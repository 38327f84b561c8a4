"""Claim: checkpoints are written beside the training; updates wait for a small part of what writing takes.

    python benchmarks/stalls.py [--mib 64]

A table of that size and its Adam slots (three times the size in all) is trained by compiled calls of about 50 ms. For a
checkpoint the weights are copied and looked through for what is not finite, as the loop does. Peer: the same one,
written before the next update. Printed: how much longer the updates of an interval take with one checkpoint in it than
without, at one in `--seconds` and, by the same seconds, at one in the loop's default of 300.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from timing import table

import custom_optimizers
from pipeline import checkpoints
from pipeline.config import Train

WIDTH, BATCH = 64, 2048


class Training:
    def __init__(self, mib: float):
        rows = int(mib * 2**20 / 4 / WIDTH)
        ids = keras.Input([], dtype="int32")
        self.model = keras.Model(ids, custom_optimizers.SparseEmbedding(rows, WIDTH)(ids))
        self.optimizer = custom_optimizers.LazyAdam(1e-3)
        self.optimizer.build(self.model.trainable_variables)
        drawn = tf.constant(np.random.default_rng(0).integers(0, rows, (64, BATCH)), tf.int32)

        @tf.function
        def updates(count):
            for i in tf.range(count):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(self.model(drawn[i % 64]) ** 2)
                self.optimizer.apply(
                    tape.gradient(loss, self.model.trainable_variables), self.model.trainable_variables
                )

        self.updates = updates
        updates(tf.constant(1))
        start = time.perf_counter()
        updates(tf.constant(50))
        self.calls = tf.constant(max(1, int(50 * 0.05 / (time.perf_counter() - start))))

    def seconds(self, calls: int, save=lambda: None) -> float:
        start = time.perf_counter()
        save()
        for _ in range(calls):
            self.updates(self.calls)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, default=64, help="size of the weights; the slots are twice that")
    parser.add_argument("--seconds", type=float, default=30, help="time between two checkpoints")
    options = parser.parse_args()
    training, number = Training(options.mib), 0
    once = training.seconds(20) / 20
    calls = max(1, int(options.seconds / once))

    def arrays() -> dict:
        nonlocal number
        number += 1
        taken = checkpoints.snapshot(training.model, training.optimizer)
        assert checkpoints.non_finite(taken) is None
        return taken

    spent: dict[str, list[float]] = {"no checkpoint": [], "beside": [], "before the next update": []}
    with tempfile.TemporaryDirectory() as folder, checkpoints.Writer(Path(folder), 1) as writer:
        for _ in range(3):
            spent["no checkpoint"].append(training.seconds(calls))
            spent["beside"].append(training.seconds(calls, lambda: writer.submit(number, arrays(), {}, None)))
            taken = training.seconds(calls, lambda: checkpoints.write(Path(folder), number, arrays(), {}))
            spent["before the next update"].append(taken)
        begin = time.perf_counter()
        found = checkpoints.snapshot(training.model, training.optimizer)
        copied = time.perf_counter() - begin
        size = sum(array.nbytes for array in found.values()) / 2**20
    medians = {name: float(np.median(times)) for name, times in spent.items()}
    plain = medians["no checkpoint"]
    print(f"\none checkpoint of {size:.0f} MiB in {plain:.1f} s of updates; its copy takes {copied * 1e3:.0f} ms\n")
    default = Train().checkpoint_seconds
    rows = [[name, s, f"{s / plain - 1:.1%}", f"{(s - plain) / default:.1%}"] for name, s in medians.items()]
    table(rows, ["", "s", "longer by", f"at one in {default:.0f} s"])


if __name__ == "__main__":
    main()
