"""Claim: the cost of training grows linearly with the rows, and rows that do not fit into memory are mapped, not read.

    python benchmarks/scale.py [--most 10000000]

Examples a second of whole training steps (matrix factorisation, 943 users, 1,682 items, 32 factors, batch 128, Adam)
over epochs of 1e5, 1e6, 1e7 drawn ratings in turns, order of the rows included, in memory and mapped from files; and by
how much the process grew in two epochs (RssAnon: memory that is the process's own, mapped files aside). The tables stay
the same, so that only the rows grow. Peer: the same at 1e5 rows.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ratings
from inputs import Epochs, in_files
from timing import table

import custom_optimizers
from pipeline.training.inputs import Batches

ROUNDS, SHORTEST = 7, 1.0  # turns of each size, and the seconds that one takes at least


def own_memory() -> float:
    """MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


class Training:
    """Whole epochs on so many rows, in memory or mapped from files in `folder`."""

    def __init__(self, rows: int, folder: Path | None):
        before = own_memory()
        self.ours = ratings.Ours(ratings.Ratings.drawn(ratings.BATCH), custom_optimizers.LazyAdam(0.005), calls=2000)
        drawn = ratings.rows_of(ratings.Ratings.drawn(rows))
        self.ours.batches.close()
        kept = in_files(drawn, folder) if folder else drawn
        self.ours.batches = Batches(kept, self.ours.config, self.ours.batches.strategy)
        self.rows, self.epoch = rows, Epochs(self.ours, self.ours.batches)
        del drawn, kept
        self.epoch()  # compiles
        start = time.perf_counter()
        self.epoch()
        self.epochs = max(1, round(SHORTEST / (time.perf_counter() - start)))
        self.grown = own_memory() - before

    def pace(self) -> float:
        """Examples a second."""
        start = time.perf_counter()
        for _ in range(self.epochs):
            self.epoch()
        return self.epochs * self.rows / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000_000, help="the largest number of ratings")
    most = parser.parse_args().most
    lines = []
    for place in ("in memory", "in files"):
        with tempfile.TemporaryDirectory() as folder:
            training = {}
            for rows in [n for n in (10**5, 10**6, 10**7) if n <= most]:
                (own := Path(folder) / str(rows)).mkdir()
                training[rows] = Training(rows, own if place == "in files" else None)
            turns = [{rows: one.pace() for rows, one in training.items()} for _ in range(ROUNDS)]
            paces = {rows: statistics.median(turn[rows] for turn in turns) for rows in training}
            for rows, one in training.items():
                one.ours.batches.close()
                lines.append([f"{rows:,}", place, paces[rows], paces[rows] / paces[10**5], f"{one.grown:.0f}"])
    table(lines, ["ratings", "rows", "examples/s", "of that at 100,000", "grew by, MiB"])


if __name__ == "__main__":
    main()
