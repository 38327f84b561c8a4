"""Claim: the cost of training grows linearly with the rows, and rows that do not fit into memory are mapped, not read.

    python benchmarks/scale.py [--most 10000000]

Examples a second of whole training steps (matrix factorisation, 943 users, 1,682 items, 32 factors, batch 128, Adam)
over one epoch of 1e5, 1e6, 1e7 drawn ratings, order of the rows included, in memory and mapped from files; and by how
much the process grew in between (RssAnon: memory that is the process's own, mapped files aside). The tables stay the
same, so that only the rows grow. Peer: the same at 1e5 rows.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ratings
from inputs import in_files
from timing import table

import custom_optimizers
from pipeline.training.inputs import Batches

EPOCHS = 3


def own_memory() -> float:
    """MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def pace_of(ours: ratings.Ours, rows: int) -> float:
    """Examples a second: the median of some epochs after a first call, which compiles."""
    batches, step, spent = ours.batches, 0, []
    for epoch in range(1, EPOCHS + 1):
        start, first = time.perf_counter(), step
        while step < epoch * batches.per_epoch:
            for count in batches.counts(step):
                ours.steps(batches.part(step, count), count == 1)
                step += count
                if step == first + count and epoch == 1:
                    start = time.perf_counter()  # compiled by now
        spent.append(time.perf_counter() - start)
    return rows / statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000_000, help="the largest number of ratings")
    most = parser.parse_args().most
    lines, paces = [], {}
    for rows in [n for n in (10**5, 10**6, 10**7) if n <= most]:
        with tempfile.TemporaryDirectory() as folder:
            for place in ("in memory", "in files"):
                before = own_memory()
                ours = ratings.Ours(ratings.Ratings.drawn(ratings.BATCH), custom_optimizers.LazyAdam(0.005), calls=2000)
                drawn = ratings.rows_of(ratings.Ratings.drawn(rows))
                kept = drawn if place == "in memory" else in_files(drawn, Path(folder))
                del drawn
                ours.batches.close()
                ours.batches = Batches(kept, ours.config, ours.batches.strategy)
                pace = pace_of(ours, rows)
                grown = own_memory() - before
                ours.batches.close()
                paces.setdefault(place, pace)
                lines.append([f"{rows:,}", place, pace, pace / paces[place], f"{grown:.0f}"])
                del ours
    table(lines, ["ratings", "rows", "examples/s", "of that at 100,000", "grew by, MiB"])


if __name__ == "__main__":
    main()
