"""Has the live model seen the rows that the candidate is tested on? Then a comparison on them favours it."""

from pathlib import Path

import tensorflow as tf

from pipeline import manifest, records
from pipeline.config import Config
from pipeline.errors import UserError

SEEN = ("train", "val")
"""What a model was fitted to, and picked by."""


def exposure(version: Path, records_dir: Path, config: Config) -> str:
    """One line that says what the live model in `version` may have seen of the test rows in `records_dir`; empty when
    it saw none: its records are the same, or its training and validation rows are others by their ids."""
    try:
        theirs = manifest.read(version).get("records")
    except UserError:
        return ""  # it is not comparable at all, and the gate says so
    if theirs == Path(records_dir).name:
        return ""
    said = f"the live model in {version} was made from other records ({theirs or 'unknown'}, not {records_dir.name})"
    old = config.records_root / str(theirs)
    try:
        if theirs and _named(old) == _named(records_dir):
            seen = _ids(old, *SEEN)
            asked = _ids(records_dir, "test")
            count = len(seen & asked)
            return f"{said}: it saw {count} of the {len(asked)} test rows, which favours it." if count else ""
    except (UserError, OSError, tf.errors.OpError):
        pass
    return f"{said}, which cannot be compared any more: it may have seen some of the test rows, which favours it."


def _named(directory: Path) -> tuple[str, str] | None:
    """Source and name of the data set: ids mean the same rows only within one."""
    data = manifest.read(directory).get("key", {}).get("settings", {}).get("data", {})
    return data.get("source"), data.get("name")


def _ids(directory: Path, *splits: str) -> set[bytes]:
    paths = [str(path) for split in splits for path in records.shards(directory, split)]
    wanted = {"id": tf.io.FixedLenFeature([], tf.string)}
    rows = tf.data.TFRecordDataset(paths).batch(1024) if paths else []
    return {name for batch in rows for name in tf.io.parse_example(batch, wanted)["id"].numpy()}
