"""Claim: input costs at most 5% of the training steps it feeds, in memory and streamed from files.

    python benchmarks/inputs.py

Input is what the loop does for a mini-batch before the forward pass. A part of it (gathering, padding, augmentation) is
in the compiled call, and timed as a call of many batches that are only summed up. The other part (the order of the
rows, their numbers or, streamed, the rows themselves) Python makes ahead, in threads, while calls before are computed:
what that costs is how much longer whole epochs take than the same calls on rows that are ready. Both, against those
calls, are the share of the input.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import images
import numpy as np
import ratings
import tensorflow as tf
import texts
from timing import table, turns

import custom_optimizers
from pipeline.training import inputs
from pipeline.training.rows import Column, Rows


def in_files(rows: Rows, folder: Path) -> Rows:
    """The same rows, mapped from files."""

    def mapped(name: str, values: np.ndarray) -> np.ndarray:
        np.save(folder / f"{name}.npy", values)
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    columns = {name: Column(mapped(name, column.values), column.starts) for name, column in rows.inputs.items()}
    return Rows(columns, rows.target, on_disk=True)


def added_up(value: tf.Tensor) -> tf.Tensor:
    """The sum, by halves of the batch: XLA adds one by one, which would take longer than the input."""
    while (rows := value.shape[0]) % 2 == 0:
        value = value[: rows // 2] + value[rows // 2 :]
    return tf.reduce_sum(value)


def calls(batches: inputs.Batches) -> Iterator[tuple[int, int]]:
    """(updates before it, updates) of each call that the loop makes in an epoch."""
    step = 0
    while step < batches.per_epoch:
        (count, *_) = batches.counts(step)
        yield step, count
        step += count


class Epochs:
    """Whole epochs in the calls of the loop, the input of the next ones made while one is computed."""

    def __init__(self, ours, batches: inputs.Batches):
        self.steps, self.batches, self.done = ours.steps, batches, 0

    def __call__(self):
        for step, count in calls(self.batches):
            self.steps(self.batches.part(self.done + step, count), count == 1).loss.numpy()
        self.done += self.batches.per_epoch


class Ready:
    """An epoch in the same calls, of which the host has nothing left to make."""

    def __init__(self, ours, batches: inputs.Batches):
        self.steps = ours.steps
        self.parts = [(batches._make(step, count), count) for step, count in calls(batches)]

    def __call__(self):
        for part, count in self.parts:
            self.steps(part, count == 1).loss.numpy()


class Gathered:
    """The batches of such an epoch, gathered and augmented, and summed up instead of learnt from; or the same calls
    with no batch in them."""

    def __init__(self, ours, ready: Ready, empty: bool = False):
        self.parts = [part._replace(count=tf.zeros_like(part.count)) if empty else part for part, _ in ready.parts]

        @tf.function(jit_compile=ours.config.train.jit, reduce_retracing=not ours.config.train.jit)
        def summed(part: inputs.Part):
            total = 0.0
            for i in tf.range(tf.cast(part.count, tf.int32)):
                x, target = inputs.batch(part, i, ours.spec, ours.config)
                for value in (*x.values(), target):
                    total += added_up(tf.cast(value, tf.float32))
            return total

        self.summed = summed

    def __call__(self):
        for part in self.parts:
            self.summed(part).numpy()


class Host:
    """What the host makes for an epoch: the order of its rows, and their numbers or the rows themselves."""

    def __init__(self, ours, batches: inputs.Batches):
        self.rows, self.train, self.batches = ours.rows, ours.config.train, batches

    def __call__(self):
        inputs.order(self.train.seed, 0, len(self.rows), self.train.batch_size, self.rows.lengths)
        for step, count in calls(self.batches):
            self.batches._make(step, count)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images.ROWS, 32, 32, 3), np.uint8)
    labels = random.integers(0, images.CLASSES, images.ROWS).astype(np.int32)
    workloads = {
        "ratings": ratings.Ours(ratings.Ratings.drawn(), custom_optimizers.LazyAdam(0.005)),
        "images, bfloat16": images.Ours(pixels, labels, "mixed_bfloat16"),
        "texts": texts.Ours(texts.Reviews(1600)),
    }
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name, ours in workloads.items():
            rows = in_files(ours.rows, Path(folder))
            fed = {"in memory": ours.batches, "streamed": inputs.Batches(rows, ours.config, ours.batches.strategy)}
            peers: dict = {}
            for place, batches in fed.items():
                ready = Ready(ours, batches)
                peers |= {(place, "epochs"): Epochs(ours, batches), (place, "ready"): ready}
                peers |= {(place, "gathered"): Gathered(ours, ready), (place, "empty"): Gathered(ours, ready, True)}
                peers[place, "host"] = Host(ours, batches)
            spent = {peer: ms / ours.batches.per_epoch for peer, ms in turns(peers, rounds=15).items()}
            for place in fed:
                names = ("epochs", "ready", "gathered", "empty", "host")
                epochs, ready, gathered, empty, host = (spent[place, name] for name in names)
                gathered -= empty
                share = (gathered + epochs - ready) / ready
                lines.append([name, place, ready, gathered, host, epochs, f"{share:.1%}"])
    print("\nmilliseconds an update\n")
    heads = ["", "rows", "rows ready", "of this gathering", "made ahead by the host", "whole epochs", "input / step"]
    table(lines, heads)


if __name__ == "__main__":
    main()
