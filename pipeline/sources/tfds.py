"""Any TensorFlow Datasets set that is prepared already, or prepared here when asked.

Splits: "test" is the test split; where there is none, "validation" takes its place. Where both exist "validation" is
not read: every choice is made on rows held out of "train". A set with neither has no split of its own (None), and ours
are cut from "train". Other splits (unsupervised, extra, ...) are never read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from pipeline import manifest
from pipeline.config import Data
from pipeline.errors import DATA, MISSING, UNAVAILABLE, USAGE, UserError
from pipeline.records import FEATURES
from pipeline.sources.ranges import ranges, taken
from pipeline.sources.source import Shard

BATCH = 512  # rows that cross from TensorFlow to Python at a time

USUAL_NAMES = {"image_bytes": "image", "item_id": "movie_id", "rating": "user_rating"}
"""Our feature -> what TFDS sets mostly call it, where they do not have ours."""


@dataclass
class Tfds:
    """Reads the prepared set in `directory` (<data_dir>/<name>/<config>/<version>); see pipeline.sources.source.Source.

    Only `columns` (ours -> theirs) are read; images stay encoded. A label of a set with class names becomes the name,
    and None where the set says -1, which means unlabelled.
    """

    task: str
    directory: str
    columns: dict[str, str]
    limit: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        feature = _builder(self.directory).info.features[self.columns["label"]] if "label" in self.columns else None
        return tuple(feature.names or ()) if isinstance(feature, tfds.features.ClassLabel) else ()

    def splits(self) -> dict[str, str | None]:
        """The splits that are read -> what they are to us."""
        there = _builder(self.directory).info.splits
        test = next((name for name in ("test", "validation") if name in there and there[name].num_examples), None)
        return {"train": "train", test: "test"} if test else {"train": None}

    def shards(self) -> list[Shard]:
        sizes = {name: _builder(self.directory).info.splits[name].num_examples for name in self.splits()}
        return [
            Shard(f"{name}-{start}", split, {"split": name, "rows": sizes[name], "start": start, "stop": stop})
            for name, split in self.splits().items()
            for start, stop in ranges(sizes[name], self.limit)
        ]

    def read(self, shard: Shard) -> Iterator[dict[str, Any]]:
        name, rows, start, stop = (shard.where[key] for key in ("split", "rows", "start", "stop"))
        for numbers, ids, examples in self._examples(f"{name}[{start}:{stop}]", start):
            kept = taken(numbers, rows, self.limit)
            values = self._parse(examples[kept])
            for row in zip(np.array(ids, dtype=object)[kept], *values.values(), strict=True):
                yield dict(zip(("id", *values), row, strict=True))

    def identity(self) -> dict[str, Any]:
        info = _builder(self.directory).info
        paths = {Path(path) for name in self.splits() for path in info.splits[name].filepaths}
        paths |= {path for path in Path(self.directory).iterdir() if path.suffix in (".json", ".txt")}
        return {
            "source": "tfds",
            "name": info.full_name,
            "columns": self.columns,
            "limit": self.limit,
            "files": [
                {"file": path.name, "bytes": path.stat().st_size, "sha256": manifest.digest(path)}
                for path in sorted(paths)
            ],
        }

    def _examples(self, part: str, number: int) -> Iterator[tuple[np.ndarray, list[str], np.ndarray]]:
        """Batches of row numbers in the split, ids and serialized examples, each [rows], in the order of the files.

        Whole batches of examples are parsed outside tf.data: TFDS's own reader parses one by one, at a tenth of the
        speed. Ids are those of its `add_tfds_id`: file name and number in the file.
        """
        for piece in _builder(self.directory).info.splits[part].file_instructions:
            data = tf.data.TFRecordDataset(piece.filename).skip(piece.skip).take(piece.take).batch(BATCH)
            at = piece.skip
            try:
                for batch in data.as_numpy_iterator():
                    places = range(at, at + len(batch))
                    yield (number + np.arange(len(batch)), [f"{piece.basename()}__{place}" for place in places], batch)
                    at, number = places.stop, number + len(batch)
            except tf.errors.OpError as error:
                raise _unreadable(piece.filename, error) from None
            if at != piece.skip + piece.take:
                raise _unreadable(piece.filename, f"it ends after {at} of {piece.examples_in_shard} rows")

    def _parse(self, examples: np.ndarray) -> dict[str, list]:
        """A column of values [rows] for each of our features, labels as class names."""
        features = _builder(self.directory).info.features
        specs = {theirs: tf.io.FixedLenFeature([], _stored(features[theirs])) for theirs in self.columns.values()}
        try:
            parsed = tf.io.parse_example(examples, specs)
        except tf.errors.InvalidArgumentError as error:
            raise _unreadable(self.directory, error) from None
        values = {}
        for ours, theirs in self.columns.items():
            column = parsed[theirs].numpy().tolist()
            if ours == "label" and self.classes:
                names = dict(enumerate(self.classes))
                column = [names.get(index) for index in column]
            elif FEATURES[self.task][ours] == tf.string != specs[theirs].dtype:
                column = [str(value) for value in column]  # ids and classes that are numbers there
            values[ours] = column
        return values


def open_source(data: Data, task: str, cache: Path) -> Tfds:
    """The set `data.name` under `data.path`, or under TFDS's own folder (~/tensorflow_datasets).

    Downloads and prepares it only with `data.download`. Raises UserError.
    """
    if not data.name:
        raise UserError("--data.source tfds needs --data.name: the name of a set, such as cifar10.", USAGE)
    builder = _prepared(data)
    features = builder.info.features
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise UserError(
            f"{builder.data_path} is stored as {builder.info.file_format.value}; prepare the set as TFRecord, "
            "which is TFDS's default.",
            USAGE,
        )
    if "train" not in builder.info.splits:
        raise UserError(f"TFDS set {data.name} has no split train, only {', '.join(builder.info.splits)}.", DATA)
    wanted = [name for name in FEATURES[task] if name != "id"]
    if unknown := sorted(set(data.columns) - set(wanted)):
        raise UserError(f"--data.columns {unknown[0]} is no feature of {task}; there are {', '.join(wanted)}.", USAGE)
    columns = {}
    for ours in wanted:
        usual = ours if ours in features else USUAL_NAMES.get(ours, ours)
        theirs = data.columns.get(ours, usual)
        if theirs == "timestamp" and theirs not in features:
            continue  # whether a time is needed is for preprocess to say
        if theirs not in features:
            raise UserError(
                f"TFDS set {data.name} has no column {theirs} for {ours}; pass --data.columns {ours} COLUMN "
                f"with one of {', '.join(sorted(features))}.",
                USAGE,
            )
        image = isinstance(features[theirs], tfds.features.Image)
        if image != (ours == "image_bytes") or _stored(features[theirs]) is None:
            raise UserError(
                f"Column {theirs} of TFDS set {data.name} cannot be {ours}: it is a {type(features[theirs]).__name__}, "
                f"where {'an Image' if ours == 'image_bytes' else 'a single value'} is needed.",
                USAGE,
            )
        columns[ours] = theirs
    return Tfds(task, str(builder.data_path), columns, data.limit)


def _prepared(data: Data) -> tfds.core.DatasetBuilder:
    """A builder whose files are there. Sets are other people's code, so whatever it raises is told in one line."""
    if data.path is not None and not data.path.is_dir() and not data.download:
        raise UserError(
            f"--data.path {data.path} is not a folder; pass the TFDS data directory that holds {data.name}, "
            "or add --data.download.",
            MISSING,
        )
    try:
        builder = tfds.builder(data.name, data_dir=data.path, try_gcs=False)
    except Exception as error:
        raise UserError(
            f"--data.name {data.name} is no TFDS set that can be opened ({_first_line(error)}).", USAGE
        ) from error
    if builder.is_prepared():
        return builder
    if not data.download:
        raise UserError(
            f"TFDS set {data.name} is not prepared: {builder.data_path} is missing or unfinished; pass with "
            "--data.path the data directory that holds it, or add --data.download.",
            MISSING,
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"TFDS could not download and prepare {data.name} ({_first_line(error)}); repeat the command, "
            f"or prepare it elsewhere and copy it to {builder.data_path}.",
            UNAVAILABLE,
        ) from error
    return builder


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _unreadable(place: str, reason: Any) -> UserError:
    if isinstance(reason, tf.errors.OpError):
        reason = (reason.message or type(reason).__name__).splitlines()[0]
    return UserError(f"{place} cannot be read ({reason}); prepare the set again.", DATA)


def _stored(feature: tfds.features.FeatureConnector) -> tf.DType | None:
    """As which of the three types of tf.train.Example a single value of the feature is stored; None if it is not one.

    An image counts: it is stored as its JPEG or PNG bytes. Compressed numbers do not: their bytes are not their value.
    """
    stored = feature.get_serialized_info()
    if isinstance(stored, dict) or stored.shape != ():
        return None
    if isinstance(feature, tfds.features.Image) or stored.np_dtype == feature.np_dtype:
        kind = np.dtype(stored.np_dtype).kind
        return {"f": tf.float32, "i": tf.int64, "u": tf.int64, "b": tf.int64}.get(kind, tf.string)
    return None


@lru_cache(maxsize=8)
def _builder(directory: str) -> tfds.core.DatasetBuilder:
    """The builder by the files alone, so that a worker needs no code of the set."""
    return tfds.builder_from_directory(directory)
