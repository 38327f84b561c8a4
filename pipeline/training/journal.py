"""The metrics log of a run: metrics.jsonl, one JSON object a line, and the same numbers as TensorBoard event files.

    {"step": 50, "epoch": 1, "split": "train", "loss": …, "learning_rate": …, "gradient_norm": …,
     "examples_per_second": …}
    {"step": 500, "epoch": 1, "split": "monitor", "update_to_weight": …, "gradient/conv2d": …, …}
    {"step": 500, "epoch": 1, "split": "val", "loss": …, "accuracy": …}

JSON has no NaN and no infinity; they are written as the strings "NaN", "Infinity" and "-Infinity" (as protobuf does),
which `float()` and JavaScript's `Number()` read back, so that a diverged run still says how it diverged.
"""

import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pipeline import manifest
from pipeline.errors import storage_failure
from pipeline.training import diagnosis

log = logging.getLogger(__name__)

NAME = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SPLITS = ("train", "monitor", "val")
_NON_FINITE = ("NaN", "Infinity", "-Infinity")


class Journal:
    """Appends to the log of `run_dir`; opened at `resume_step`, it first forgets every line of a later step.

    A resumed run so has no line twice and none missing, provided that `sync` was called before the checkpoint of
    `resume_step` was committed. What a full disk does not take waits in memory for the next line, or for `sync`.
    """

    def __init__(self, run_dir: Path, tensorboard: bool, resume_step: int):
        path = Path(run_dir) / NAME
        kept = [line for line in read(run_dir) if line["step"] <= resume_step]
        manifest.write_file(path, "".join(map(_encode, kept)))
        self._last = dict.fromkeys(SPLITS, -1) | {line["split"]: line["step"] for line in kept}
        self._monitored = [line for line in kept if line["split"] == "monitor"]
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by close()
        self._waiting, self._lock = b"", threading.Lock()  # lines that the disk did not take yet
        self._writers = _event_writers(Path(run_dir) / TENSORBOARD, kept) if tensorboard else {}

    def write(self, step: int, epoch: int, split: str, **values: float) -> None:
        """Logs `values` after `step` updates; `split` is train (of the last call), monitor (see monitors.py) or val
        (on the validation rows). What a monitor line shows of bad news for the first time is also logged as a warning.
        """
        # A run killed between an epoch's checkpoint and its end validates again what it has logged already.
        if step <= self._last[split]:
            return
        self._last[split] = step
        line = {"step": int(step), "epoch": int(epoch), "split": split, **{k: float(v) for k, v in values.items()}}
        try:
            with self._lock:
                known, self._waiting = bool(self._waiting), self._waiting + _encode(line).encode()
                self._drain()
            if self._writers:
                _write_events(self._writers[split], line)
        except Exception as error:
            if storage_failure(error) is None:
                raise
            if not known:
                log.warning("%s waits in memory for the disk: %s", self._file.name, error)
        if split == "monitor":
            self._monitored.append(line)
            diagnosis.warn(self._monitored)

    def sync(self) -> None:
        """Returns when every line so far is on the disk; any thread may call it. Raises OSError where it is full."""
        with self._lock:
            self._drain()
        os.fsync(self._file.fileno())
        for writer in self._writers.values():
            writer.flush()

    def _drain(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]  # a disk may take a part

    def close(self) -> None:
        """Without an error: whoever needs every line on the disk calls `sync` before."""
        if self._file.closed:
            return
        try:
            self.sync()
            for writer in self._writers.values():
                writer.close()
        except Exception as error:
            log.warning("%s is not whole: %s", self._file.name, error)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's log in order, non-finite values as floats; empty without a log.

    A line that is not whole (the process was killed while writing it, or is writing it now) is left out.
    """
    try:
        text = (Path(run_dir) / NAME).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = [_decode(line) for line in text.split("\n")[:-1]]  # what follows the last newline is not whole
    return [line for line in lines if line is not None]


def _encode(line: Mapping[str, Any]) -> str:
    return json.dumps({key: _to_json(value) for key, value in line.items()}, allow_nan=False) + "\n"


def _decode(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or not {"step", "epoch", "split"} <= line.keys():
        return None
    return {key: float(value) if value in _NON_FINITE else value for key, value in line.items()}


def _to_json(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _event_writers(directory: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A tf.summary writer a split, the event files made anew from `lines`.

    Event files cannot be cut; rewritten from the log, they hold no step twice either. The price is that TensorBoard
    shows the time of the resumption as the wall time of the earlier steps.
    """
    import tensorflow as tf

    writers = {}
    for split in SPLITS:
        shutil.rmtree(directory / split, ignore_errors=True)
        writers[split] = tf.summary.create_file_writer(str(directory / split))
    for line in lines:
        _write_events(writers[line["split"]], line)
    return writers


def _write_events(writer: Any, line: Mapping[str, Any]) -> None:
    import tensorflow as tf

    with writer.as_default(step=line["step"]):
        for name, value in line.items():
            if name not in ("step", "epoch", "split"):
                tf.summary.scalar(name, value)
