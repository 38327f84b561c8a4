"""The record contract: what a `tf.train.Example` in a shard holds. It is what a client of the served model sends.

    task            features
    image           image_bytes (JPEG or PNG), label
    sentiment       text (UTF-8), label
    recommendation  user_id, item_id, rating (float), timestamp (int, seconds)

and in each `id`, the row's name in its source. Beam encodes, training and evaluation parse, the export's `classify` and
`regress` signatures take the same examples.
"""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipeline import manifest
from pipeline.config import Config, to_json
from pipeline.errors import DATA, MISSING, UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

FEATURES: dict[str, dict[str, tf.DType]] = {
    "image": {"id": tf.string, "image_bytes": tf.string, "label": tf.string},
    "sentiment": {"id": tf.string, "text": tf.string, "label": tf.string},
    "recommendation": {
        "id": tf.string,
        "user_id": tf.string,
        "item_id": tf.string,
        "rating": tf.float32,
        "timestamp": tf.int64,
    },
}


def encode(row: dict, task: str) -> bytes:
    """A row as a serialized `tf.train.Example` with exactly the task's features."""
    return tf.train.Example(
        features=tf.train.Features(feature={name: _feature(row[name], dtype) for name, dtype in FEATURES[task].items()})
    ).SerializeToString(deterministic=True)


def parse(serialized: tf.Tensor, task: str) -> dict[str, tf.Tensor]:
    """A batch of serialized examples [batch] as one tensor [batch] a feature."""
    specs = {name: tf.io.FixedLenFeature([], dtype) for name, dtype in FEATURES[task].items()}
    return tf.io.parse_example(serialized, specs)


def shard_name(split: str, shard: int, shards: int) -> str:
    return f"{split}-{shard:05d}-of-{shards:05d}.tfrecord"


def shards(directory: Path, split: str) -> list[Path]:
    """The files of a split in order, by the manifest (a stray or missing file is the manifest's business)."""
    names = sorted(
        n for n in manifest.read(directory)["files"] if n.startswith(f"{split}-") and n.endswith(".tfrecord")
    )
    return [Path(directory) / name for name in names]


def find(config: Config) -> Path:
    """The newest committed records made with the data and model settings of `config`: what a host without Beam or
    without the source trains on. Raises UserError(MISSING) when there are none."""

    def made_for(directory: Path) -> bool:
        try:
            key = manifest.read(directory).get("key", {})
        except UserError as error:
            log.warning("records %s passed over: %s", directory.name, error)
            return False
        mine = {"data": to_json(config.data), "model": to_json(config.model)}
        theirs = key.get("settings", {})
        return key.get("task") == config.task and all(
            mine[section].get(name) == value for section in mine for name, value in theirs.get(section, {}).items()
        )

    made = [m.parent for m in config.records_root.glob(f"[!.]*/{manifest.NAME}") if made_for(m.parent)]
    if not made:
        raise UserError(
            f"{config.records_root} holds no records for these settings: `minibatch preprocess` with the same options "
            "makes them.",
            MISSING,
        )
    newest = max(made, key=lambda directory: directory.stat().st_mtime)
    if len(made) > 1:
        others = ", ".join(sorted(directory.name for directory in made if directory != newest))
        log.warning(
            "%s holds several records for these settings, of other rows or by other code (%s); the one that was "
            "preprocessed last is taken: %s",
            *(config.records_root, others, newest.name),
        )
    return newest


def load(directory: Path, split: str, task: str) -> dict[str, np.ndarray]:
    """All rows of a split in memory, one array [rows] a feature, in shard order; strings as bytes objects.

    Raises UserError as `stream` does.
    """
    parts = list(stream(directory, split, task, 8192))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def stream(directory: Path, split: str, task: str, rows: int, convert: Callable = lambda features: features):
    """Yields convert(features) of up to `rows` rows at a time in shard order, computed by tf.data ahead of its reader;
    the features are one tensor [rows] each, what is yielded are NumPy arrays.

    Raises UserError for an empty split, and for a shard that is not there, not whole or not of this task.
    """
    described = manifest.read(directory)["files"]
    found = 0
    for file in shards(directory, split):
        read = 0
        serialized = tf.data.TFRecordDataset(str(file)).batch(rows)
        converted = serialized.map(lambda s: (tf.size(s), convert(parse(s, task))), os.cpu_count()).prefetch(1)
        converted = converted.with_options(_UNTUNED)
        try:
            for count, part in converted.as_numpy_iterator():
                read += int(count)
                yield part
        except _UNREADABLE as error:
            reason = re.sub(r"\{\{.*?\}\} *| *\[Op:.*", "", error.message.splitlines()[0])
            raise UserError(f"{file} cannot be read ({reason}); run preprocess again.", DATA) from None
        # A file cut between two records reads without an error.
        if read != (expected := described[file.name].get("rows", read)):
            raise UserError(f"{file} has {read} rows instead of {expected}; run preprocess again.", DATA)
        found += read
    if not found:
        raise UserError(
            f"{directory}: split {split!r} is empty; check --data.validation-fraction, --data.test-fraction "
            "and the source's own splits.",
            DATA,
        )


def count(directory: Path, split: str) -> int:
    """How many rows a split has, by the manifest."""
    described = manifest.read(directory)["files"]
    return sum(described[file.name].get("rows", 0) for file in shards(directory, split))


# An iterator that autotunes its own buffers takes up to a second and more to be given back.
_UNTUNED = tf.data.Options()
_UNTUNED.autotune.enabled = False

_UNREADABLE = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
)


def _feature(value, dtype: tf.DType) -> tf.train.Feature:
    if dtype == tf.string:
        data = value if isinstance(value, bytes) else str(value).encode()
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
    if dtype == tf.float32:
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
