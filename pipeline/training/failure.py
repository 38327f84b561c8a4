"""What is said of a loss or gradient that is not finite: where, and which examples it came from."""

from pathlib import Path

import numpy as np

from pipeline import records
from pipeline.training.inputs import Batches
from pipeline.training.step import Outcome

NAMED = 10  # examples named, at the most


def words(outcome: Outcome, update: int, batches: Batches, records_dir: Path, task: str) -> str:
    """ "the loss is nan at update 7; it comes from example 12": of the update after `update` ones."""
    numbers, weights = batches.examples(update)
    shares = np.asarray(outcome.shares)  # [batch]
    counted = numbers[weights > 0]
    guilty = numbers[(weights > 0) & ~np.isfinite(shares)]
    loss = float(shares.sum())
    what = "the gradient is not finite" if np.isfinite(loss) else f"the loss is {loss}"
    if len(guilty) == len(counted):
        blame = "every example of its batch has one: the weights have left all bounds"
    elif len(guilty):
        blame = f"it comes from {named(guilty, records_dir, task)}"
    else:
        blame = f"the batch is {named(counted, records_dir, task)}"
    return f"{what} at update {update + 1}; {blame}"


def named(numbers: np.ndarray, records_dir: Path, task: str) -> str:
    """The ids of training rows, a few of them."""
    wanted, ids, start = sorted(numbers[:NAMED].tolist()), [], 0
    for part in records.stream(records_dir, "train", task, 8192, lambda features: {"id": features["id"]}):
        ids += [part["id"][n - start].decode(errors="replace") for n in wanted if start <= n < start + len(part["id"])]
        start += len(part["id"])
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"example{'s' if len(numbers) > 1 else ''} {', '.join(ids)}{more}"
