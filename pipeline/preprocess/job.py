"""From a source to a committed directory of records."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.config import Config
from pipeline.errors import USAGE, Corrupt, UserError
from pipeline.preprocess import graph, runner, verdict
from pipeline.preprocess.image import Image
from pipeline.preprocess.key import explanation, key
from pipeline.preprocess.recommendation import Recommendation
from pipeline.preprocess.rows import Task
from pipeline.preprocess.sentiment import Sentiment
from pipeline.preprocess.splits import Shares
from pipeline.records import FEATURES, SPLITS, shard_name
from pipeline.sources.source import Source


def preprocess(config: Config, source: Source | None = None) -> Path:
    """The records directory of `config`, made if it is not there yet: cleaned, split, analysed, written, committed.

    Raises UserError for unusable data or settings and for a full disk (then nothing is left behind), Corrupt when the
    directory is there and its files are not what they were.
    """
    start = time.monotonic()
    source = _opened(config, source)
    made_from = key(config, source)
    fingerprint = manifest.fingerprint(made_from)
    directory = config.records_root / fingerprint
    if directory.exists():
        _verify(directory)
        os.utime(directory)  # for `records.find`, which takes the newest
        _say(f"{directory} is there already")
        return directory
    manifest.sweep(config.records_root)
    with manifest.committing(directory, exist_ok=True) as draft:
        plan = _plan(config, source, draft.path)
        pipeline = runner.prepare(config.data.runner, config.data.runner_options)
        graph.construct(pipeline, source, plan)
        runner.run(pipeline)
        total, rows = _finish(config, plan, config.records_root / f"dead_letters-{fingerprint}.jsonl")
        draft.rows.update(rows)
        draft.facts.update(task=config.task, fingerprint=fingerprint, key=made_from, counts=total)
    splits = ", ".join(f"{split} {total[split]:,}" for split in SPLITS)
    _say(
        f"{total['in']:,} rows in, {total['good']:,} good, {total['dead']:,} dead; {splits}; "
        f"{time.monotonic() - start:.1f} s"
    )
    return directory


def explain(config: Config, source: Source | None = None) -> str:
    """One line: whether `preprocess` would find its records there already, and if not, what differs."""
    return explanation(key(config, _opened(config, source)), config.records_root)


def _opened(config: Config, source: Source | None) -> Source:
    if source is None:
        from pipeline.sources import open_source

        source = open_source(config.data, config.task, config.cache_root)
    if source.task != config.task:
        raise UserError(f"The source holds {source.task} rows, the model wants {config.task} rows.", USAGE)
    if config.data.split_by == "time" and config.task != "recommendation":
        raise UserError(f"--data.split-by time: {config.task} rows have no timestamp; use hash.", USAGE)
    return source


def _plan(config: Config, source: Source, directory: Path) -> graph.Plan:
    data, classes = config.data, config.data.classes or source.classes
    model: Any = config.model
    task: Task
    if config.task == "image":
        task = Image(classes, model.height, model.width, model.channels)
    elif config.task == "sentiment":
        task = Sentiment(classes, model.vocabulary_size)
    else:
        task = Recommendation(needs_time=data.split_by == "time")
    tested = any(shard.split == "test" for shard in source.shards())
    shares = Shares(data.split_by, data.validation_fraction, 0.0 if tested else data.test_fraction)
    return graph.Plan(config.task, task, shares, data.shards, classes, directory.absolute())


def _finish(config: Config, plan: graph.Plan, keep: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Checks what the workers wrote and completes the directory; (counts, rows of each file)."""
    directory, letters = plan.directory, plan.directory / graph.DEAD_LETTERS
    letters.touch()
    for part in directory.glob(f"{graph.PART}*"):
        part.unlink()
    counts = json.loads((directory / graph.COUNTS).read_text())
    (directory / graph.COUNTS).unlink()
    total = verdict.totals(counts)
    verdict.check_bad_rows(total, config.data.max_bad_fraction, letters, keep)
    verdict.check_splits(total)
    if config.task != "recommendation":
        verdict.check_classes(config, counts["labels"], plan.classes)
    files = [shard_name(split, n, plan.buckets) for split in SPLITS for n in range(plan.buckets)]
    for file in files:
        (directory / file).touch()  # of 0 rows, where no row fell into the bucket: each split has all its files
    schema = {name: dtype.name for name, dtype in FEATURES[config.task].items()}
    (directory / "schema.json").write_text(json.dumps(schema, indent=1) + "\n")
    return total, {**{file: counts["rows"].get(file, 0) for file in files}, graph.DEAD_LETTERS: total["dead"]}


def _verify(directory: Path) -> None:
    try:
        manifest.verify(directory)
    except UserError as error:
        raise Corrupt(f"{error} To rebuild it, remove that directory and repeat the command.") from None


def _say(line: str) -> None:
    print(f"preprocess: {line}", file=sys.stderr)
