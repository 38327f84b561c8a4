"""Run directories whose checkpoints hold one array, filled with the number of the update: what is restored is seen."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np

from pipeline import checkpoints

SIZE = 300
KEEP = 2


def state(step: int, size: int = SIZE) -> dict[str, np.ndarray]:
    return {"model/0000/weights": np.full([size], step, np.float32)}


def facts(best: int) -> dict:
    return {"standing": {"best_checkpoint": f"{best:09d}"}}


def submit(writer: checkpoints.Writer, step: int, best: int = 1, size: int = SIZE) -> None:
    writer.submit(step, state(step, size), facts(best), f"{best:09d}")


def restored(root: Path, size: int = SIZE, damaged: set[str] | None = None) -> int | None:
    """The update number that a new process would go on from, after a look at what it would restore."""
    weights = keras.Variable(np.zeros([size], np.float32), name="weights")
    found = checkpoints.restore(root, SimpleNamespace(variables=[weights]), None, damaged)
    if found is None:
        return None
    np.testing.assert_array_equal(weights.numpy(), np.float32(found["step"]))
    return found["step"]


def steps(root: Path) -> list[int]:
    return [int(path.name) for path in checkpoints.listed(root)]


def kept(run_dir: Path) -> Path:
    """A run with the best checkpoint (1) and the two newest; committing 4 removes 2."""
    with checkpoints.Writer(run_dir / "checkpoints", KEEP) as writer:
        for step in (1, 2, 3):
            submit(writer, step)
    return run_dir


@contextmanager
def said() -> Iterator[list[Exception]]:
    """The exception that ended the block."""
    ended: list[Exception] = []
    try:
        yield ended
    except Exception as error:
        ended.append(error)
