"""The Beam pipeline from a source's shards to record files, analysis, dead letters and counts.

    shards -> Read and clean -> chunks of rows by bucket -> Write buckets -> {split}-{bucket}-of-{buckets}.tfrecord
                  |                                            |  |
                  +--------------- dead letters ---------------+  +-> parts of the analysis -> Sum up -> Write analysis

The driver only ever holds the shards. A bucket is what one worker holds at once: more `--data.shards`, less memory.
Files are written where `directory` is, so workers on other machines must share that folder.
"""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import tensorflow as tf

from pipeline.errors import MISSING, UserError
from pipeline.preprocess import rows
from pipeline.preprocess.reported import reported
from pipeline.preprocess.rows import BadRow, Task
from pipeline.preprocess.splits import Row, Shares, assign, bucket, shuffled
from pipeline.records import SPLITS, encode, shard_name
from pipeline.sources.source import Shard, Source

COUNTS = "counts.json"
DEAD_LETTERS = "dead_letters.jsonl"
PART = ".part-"
"""Files that begin so are unfinished: a worker was stopped, and another one wrote the file again."""
CHUNK = 100
"""Rows that travel between workers as one element; Beam's cost is by element."""


@dataclass(frozen=True)
class Plan:
    """All that the workers need to know."""

    name: str
    """The task's name in `pipeline.records`."""
    task: Task
    shares: Shares
    buckets: int
    classes: tuple[str, ...]
    directory: Path

    @property
    def grouped_by(self) -> str:
        """The feature that decides the bucket: rows which must meet for the split or as duplicates share it."""
        return "user_id" if self.shares.by == "time" else "id"


def construct(pipeline: beam.Pipeline, source: Source, plan: Plan) -> None:
    """Adds all the steps to `pipeline`."""
    read = (
        pipeline
        | "Shards" >> beam.Create(source.shards())
        | "Spread" >> beam.Reshuffle()
        | "Read and clean" >> beam.ParDo(Read(source, plan)).with_outputs("dead", "facts", main="rows")
    )
    written = (
        read.rows
        | "Gather buckets" >> beam.GroupByKey()
        | "Write buckets" >> beam.ParDo(Write(plan)).with_outputs("dead", main="facts")
    )
    (
        (read.dead, written.dead)
        | "Dead letters" >> beam.Flatten()
        | "To one place" >> beam.GroupByKey()
        | "Write dead letters" >> beam.ParDo(write_dead_letters, plan.directory)
    )
    (
        (read.facts, written.facts)
        | "Facts" >> beam.Flatten()
        | "Sum up" >> beam.CombineGlobally(SumUp(plan.task))
        | "Write analysis" >> beam.ParDo(write_analysis, plan)
    )


class Read(beam.DoFn):
    """Shard -> (bucket, chunk of clean rows); beside it dead letters, and counts by shard as facts."""

    def __init__(self, source: Source, plan: Plan):
        self.source, self.plan = source, plan

    def process(self, shard: Shard) -> Iterator[Any]:
        task, by, buckets = self.plan.task, self.plan.grouped_by, self.plan.buckets
        chunks: dict[int, list[Row]] = {}
        counts: Counter = Counter({("by_shard", shard.name, "in"): 0})
        with reported():
            for number, raw in enumerate(self.read(shard)):
                counts["by_shard", shard.name, "in"] += 1
                try:
                    row = Row(task.clean(raw), shard.name, number, shard.split)
                except BadRow as bad:
                    counts["by_shard", shard.name, "dead"] += 1
                    letter = dead_letter(raw, shard.name, number, str(bad), rows.excerpt(bad.value))
                    yield beam.pvalue.TaggedOutput("dead", (None, letter))
                    continue
                key = bucket(row.features[by], buckets)
                chunk = chunks.setdefault(key, [])
                chunk.append(row)
                if len(chunk) == CHUNK:
                    yield key, chunks.pop(key)
            yield from chunks.items()
            yield beam.pvalue.TaggedOutput("facts", (counts, None))

    def read(self, shard: Shard) -> Iterator[Any]:
        try:
            yield from self.source.read(shard)
        except OSError as error:
            raise UserError(f"Shard {shard.name} of the source cannot be read: {error}.", MISSING) from error


class Write(beam.DoFn):
    """(bucket, chunks) -> the bucket's file of each split; facts: counts, and the part of its training rows."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def process(self, element: tuple[int, Iterable[list[Row]]]) -> Iterator[Any]:
        plan, (key, chunks) = self.plan, element
        everything = sorted((row for chunk in chunks for row in map(Row._make, chunk)), key=lambda row: row.place)
        counts: Counter = Counter()
        good = everything[:1]
        for before, row in pairwise(everything):
            if row.id != before.id:
                good.append(row)
                continue
            counts["by_shard", row.shard, "dead"] += 1
            first = f"first in {good[-1].shard}, row {good[-1].number}"
            letter = dead_letter(row.features, row.shard, row.number, "duplicate id", first)
            yield beam.pvalue.TaggedOutput("dead", (None, letter))
        counts.update(("by_shard", row.shard, "good") for row in good)
        with reported():
            splits = assign(good, plan.shares, plan.task.content)
            for split, members in splits.items():
                file = shard_name(split, key, plan.buckets)
                examples = (encode(row.features, plan.name) for row in shuffled(members))
                write_records(plan.directory / file, examples)
                counts["rows", file] = len(members)
                counts.update(("labels", split, row.features["label"]) for row in members if "label" in row.features)
            yield counts, plan.task.part(row.features for row in splits["train"])


class SumUp(beam.CombineFn):
    """Adds (counts, part of the analysis) to one of each."""

    def __init__(self, task: Task):
        self.task = task

    def create_accumulator(self):
        return Counter(), self.task.part([])

    def add_input(self, accumulator, facts):
        counts, part = facts
        accumulator[0].update(counts)
        if part is not None:
            self.task.add(accumulator[1], part)
        return accumulator

    def merge_accumulators(self, accumulators):
        total = self.create_accumulator()
        for accumulator in accumulators:
            self.add_input(total, accumulator)
        return total

    def extract_output(self, accumulator):
        return accumulator


def write_records(path: Path, examples: Iterable[bytes]) -> None:
    """A TFRecord file, whole or not at all under its name: writing it a second time is harmless."""
    part = path.with_name(f"{PART}{uuid.uuid4().hex}")
    with tf.io.TFRecordWriter(str(part)) as writer:
        for example in examples:
            writer.write(example)
    os.replace(part, path)


def write_analysis(facts: tuple[Counter, Any], plan: Plan) -> None:
    """The counts for the driver, and where there are training rows the files of the analysis."""
    counts, part = facts
    nested: dict[str, Any] = {"by_shard": {}, "rows": {}, "labels": {split: {} for split in SPLITS}}
    for path, value in sorted(counts.items()):
        place = nested
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = value
    found = nested["labels"]["train"]
    with reported():
        (plan.directory / COUNTS).write_text(json.dumps(nested))
        if any(value for path, value in counts.items() if path[0] == "rows" and path[1].startswith("train-")):
            class_counts = {name: found.get(name, 0) for name in plan.classes or sorted(found)}
            plan.task.write(part, class_counts, plan.directory)


def dead_letter(row: Any, shard: str, number: int, reason: str, excerpt: str) -> dict[str, Any]:
    """What dead_letters.jsonl says of a row: enough to find it in its source, and why it was left out."""
    name = row.get("id") if isinstance(row, dict) else None
    name = name.decode(errors="replace") if isinstance(name, bytes) else name
    name = name if isinstance(name, str) else None
    return {"id": name, "shard": shard, "row": number, "reason": reason, "excerpt": excerpt}


def write_dead_letters(element: tuple[None, Iterable[dict[str, Any]]], directory: Path) -> None:
    ordered = sorted(element[1], key=lambda letter: (letter["shard"], letter["row"]))
    with reported(), open(directory / DEAD_LETTERS, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(letter) + "\n" for letter in ordered)
