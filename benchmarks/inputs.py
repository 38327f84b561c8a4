"""Claim: input costs at most 5% of the training steps it feeds, in memory and streamed from files.

    python benchmarks/inputs.py

Input alone is what the loop does for a mini-batch before the forward pass: the order of the rows, gathering, padding,
augmentation. It is timed as a call of many batches that are only summed up; "host" is the part of it that Python does
ahead, in a thread, while the call before is computed. A step is the whole of it, update included.
"""

import argparse
import os
import tempfile
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


class Input:
    """One call's batches, made on the host, gathered and augmented, and summed up instead of learnt from."""

    def __init__(self, batches: inputs.Batches, spec, config):
        self.batches, self.count = batches, batches.calls

        @tf.function(jit_compile=config.train.jit, reduce_retracing=not config.train.jit)
        def summed(part: inputs.Part):
            total = 0.0
            for i in tf.range(part.count):
                x, target = inputs.batch(part, i, spec, config)
                for value in (*x.values(), target):
                    total += added_up(tf.cast(value, tf.float32))
            return total

        self.summed = summed

    def host(self):
        return self.batches._make(0, self.count)

    def __call__(self):
        self.summed(self.host()).numpy()


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images.ROWS, 32, 32, 3), np.uint8)
    labels = random.integers(0, images.CLASSES, images.ROWS).astype(np.int32)
    workloads = {
        "ratings": ratings.Ours(ratings.Ratings.drawn(), custom_optimizers.LazyAdam(0.005)),
        "images, bfloat16": images.Ours(pixels, labels, "mixed_bfloat16"),
        "texts": texts.Ours(texts.Reviews()),
    }
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name, ours in workloads.items():
            count = ours.batches.calls
            fed = {"in memory": ours.batches}
            rows = in_files(ours.rows, Path(folder))
            fed["streamed"] = inputs.Batches(rows, ours.config, ours.batches.strategy)
            alone = {place: Input(batches, ours.spec, ours.config) for place, batches in fed.items()}
            peers: dict = {"steps": ours}
            for place, one in alone.items():
                peers |= {place: one, f"{place}, host": one.host}
            spent = {peer: ms / count for peer, ms in turns(peers, rounds=5, seconds=0.5).items()}
            for place in fed:
                host, whole = spent[f"{place}, host"], spent[place]
                lines.append([name, place, spent["steps"], whole, host, f"{whole / spent['steps']:.1%}"])
    print("\nmilliseconds a mini-batch\n")
    table(lines, ["", "rows", "step", "input alone", "of this on the host", "input / step"])


if __name__ == "__main__":
    main()
