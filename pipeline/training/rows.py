"""The training rows as model inputs: decoded, tokenised and looked up once a run.

Rows that fit into `train.memory_limit` are kept in memory; more than that go to files in the run's directory, which are
mapped, not read, so that memory holds what is being used and no more.
"""

import io
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from models.analysis import Analysis
from models.spec import ModelSpec
from pipeline import manifest, records
from pipeline.config import Config
from pipeline.errors import DATA, UserError

CHUNK = 1024  # rows prepared at a time
LENGTHS, TARGET = ".lengths", "target"


@dataclass(frozen=True)
class Column:
    """One input of every row: values [rows, ...]. Where rows differ in length, the values of all rows one after another
    [sum of the lengths], and `starts` [rows + 1]: where each row begins."""

    values: np.ndarray
    starts: np.ndarray | None = None

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        return self.starts[numbers + 1] - self.starts[numbers]  # type: ignore[index]  # asked of ragged columns only

    def take(self, numbers: np.ndarray, width: int | None = None) -> np.ndarray:
        """Those rows, [numbers, ...]; ragged ones [numbers, width], zeros behind their values."""
        if self.starts is None:
            return self.values[numbers]
        lengths = self.lengths(numbers)
        there = np.arange(width or lengths.max())[None] < lengths[:, None]  # [numbers, width]
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1]) + np.repeat(self.starts[numbers] - (ends - lengths), lengths)
        padded = np.zeros(there.shape, self.values.dtype)
        padded[there] = self.values[places]
        return padded


@dataclass(frozen=True)
class Rows:
    """The prepared training rows; `on_disk`: the columns are mapped files."""

    inputs: dict[str, Column]
    target: np.ndarray
    on_disk: bool = False

    def __len__(self) -> int:
        return len(self.target)

    @property
    def row_bytes(self) -> int:
        """What the inputs of a row take, on average."""
        return sum(column.values.nbytes for column in self.inputs.values()) // len(self) + 1

    @property
    def lengths(self) -> np.ndarray | None:
        """The lengths of the rows [rows] where they vary, else None."""
        ragged = next((c.starts for c in self.inputs.values() if c.starts is not None), None)
        return None if ragged is None else np.diff(ragged)


def prepare(records_dir: Path, config: Config, spec: ModelSpec, analysis: Analysis, scratch: Path) -> Rows:
    """Reads the training split and turns it into model inputs; into the directory `scratch` if they are too many."""
    module = spec.inputs(config.model, analysis)

    def convert(features):
        return _components({**module(features), TARGET: spec.target(features, analysis)})

    if manifest.is_committed(scratch):
        return _mapped(scratch, manifest.verify(scratch)["components"])
    chunks = records.stream(records_dir, "train", config.task, CHUNK, convert)
    first = _checked(next(chunks), records_dir)
    every = itertools.chain([first], (_checked(chunk, records_dir) for chunk in chunks))
    each = sum(array.nbytes for array in first.values()) / len(first[TARGET])
    # Held twice where they are held: as arrays, and as tensors on the device.
    if 2 * each * records.count(records_dir, "train") <= config.train.memory_limit * 2**20:
        sinks: dict[str, Any] = {name: io.BytesIO() for name in first}
        components = _write(every, sinks)
        return _rows(components, lambda name, dtype: np.frombuffer(sinks[name].getbuffer(), dtype))
    with manifest.committing(scratch, exist_ok=True) as draft:
        files = {name: open(draft.path / name, "wb") for name in first}  # noqa: SIM115  closed below
        try:
            draft.facts["components"] = components = _write(every, files)
        finally:
            for file in files.values():
                file.close()
    return _mapped(scratch, components)


def _components(tensors: dict[str, tf.Tensor | tf.RaggedTensor]) -> dict[str, tf.Tensor]:
    """Dense tensors: of a ragged one its flat values, and its lengths under a name of their own."""
    parts = {}
    for name, value in tensors.items():
        if isinstance(value, tf.RaggedTensor):
            parts[name], parts[name + LENGTHS] = value.flat_values, value.row_lengths()
        else:
            parts[name] = value
    return parts


def _checked(chunk: dict[str, np.ndarray], records_dir: Path) -> dict[str, np.ndarray]:
    target = chunk[TARGET]
    if np.issubdtype(target.dtype, np.integer) and (target < 0).any():
        raise UserError(
            f"{records_dir}: a training label is none of the classes of analysis.json; run preprocess again.", DATA
        )
    return chunk


def _write(chunks: Iterable[dict[str, np.ndarray]], sinks: dict[str, Any]) -> dict[str, list]:
    """name -> [dtype, shape of an item] of what was appended to the sinks."""
    kinds: dict[str, list] = {}
    for chunk in chunks:
        for name, array in chunk.items():
            sinks[name].write(np.ascontiguousarray(array).data)
            kinds[name] = [array.dtype.name, list(array.shape[1:])]
    return kinds


def _mapped(scratch: Path, components: dict[str, list]) -> Rows:
    def mapped(name: str, dtype: str) -> np.ndarray:
        # What decides the order and the ends of rows is read at once; the rows themselves when they are asked for.
        whole = name.endswith(LENGTHS)
        return np.fromfile(scratch / name, dtype) if whole else np.memmap(scratch / name, dtype, "r")

    return _rows(components, mapped, on_disk=True)


def _rows(components: dict[str, list], read: Callable[[str, str], np.ndarray], on_disk: bool = False) -> Rows:
    arrays = {name: read(name, dtype).reshape(-1, *shape) for name, (dtype, shape) in components.items()}
    columns = {}
    for name, values in arrays.items():
        if name != TARGET and not name.endswith(LENGTHS):
            lengths = arrays.get(name + LENGTHS)
            columns[name] = Column(values, None if lengths is None else np.concatenate([[0], np.cumsum(lengths)]))
    return Rows(columns, arrays[TARGET], on_disk)
