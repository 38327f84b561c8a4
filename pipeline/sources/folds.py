"""The original files of MovieLens 100K: five folds, each a base file to train on and a test file."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.config import Data
from pipeline.errors import DATA, MISSING, USAGE, UserError
from pipeline.sources.ranges import ranges, taken
from pipeline.sources.source import Shard

COLUMNS = ("user_id", "item_id", "rating", "timestamp")
FILES = {"base": "train", "test": "test"}


@dataclass
class Folds:
    """Reads u<fold>.base and u<fold>.test in `folder`; see pipeline.sources.source.Source.

    A row's id is its file and line number, from 1. A line with too few fields yields those there are, one with too many
    has the rest in its timestamp, and a field that is not UTF-8 stays bytes: none of them stops the shard.
    """

    folder: Path
    fold: int
    limit: int | None = None
    task: str = "recommendation"
    classes: tuple[str, ...] = ()

    def files(self) -> dict[Path, str]:
        """The two files -> the split each is."""
        return {self.folder / f"u{self.fold}.{ending}": split for ending, split in FILES.items()}

    def shards(self) -> list[Shard]:
        shards = []
        for file, split in self.files().items():
            with open(file, "rb") as lines:
                rows = sum(1 for _ in lines)
            shards += [
                Shard(f"{file.name}-{start}", split, {"file": file.name, "rows": rows, "start": start, "stop": stop})
                for start, stop in ranges(rows, self.limit)
            ]
        return shards

    def read(self, shard: Shard) -> Iterator[dict[str, Any]]:
        name, rows, start, stop = (shard.where[key] for key in ("file", "rows", "start", "stop"))
        with open(self.folder / name, "rb") as lines:
            for number, line in enumerate(islice(lines, start, stop), start):
                if taken(number, rows, self.limit):
                    fields = line.rstrip(b"\r\n").split(b"\t", len(COLUMNS) - 1)
                    yield {"id": f"{name}:{number + 1}", **dict(zip(COLUMNS, map(_text, fields), strict=False))}

    def identity(self) -> dict[str, Any]:
        return {
            "source": "ml-100k",
            "fold": self.fold,
            "limit": self.limit,
            "files": [
                {"file": file.name, "bytes": file.stat().st_size, "sha256": manifest.digest(file)}
                for file in self.files()
            ],
        }


def open_source(data: Data, task: str, cache: Path) -> Folds:
    """The fold `data.fold` of the files in `data.path`. Raises UserError when they are not there or empty."""
    if task != "recommendation":
        raise UserError(f"--data.source ml-100k is for recommendation, not {task}.", USAGE)
    if data.path is None:
        raise UserError("--data.source ml-100k needs --data.path: the folder that holds u1.base to u5.test.", MISSING)
    source = Folds(data.path, data.fold, data.limit)
    for file in source.files():
        if not file.is_file():
            raise UserError(
                f"{file} is missing; pass with --data.path the folder that holds u1.base to u5.test.", MISSING
            )
        if not file.stat().st_size:
            raise UserError(f"{file} is empty; put the original file of MovieLens 100K there.", DATA)
    return source


def _text(field: bytes) -> str | bytes:
    try:
        return field.decode()
    except UnicodeDecodeError:
        return field
