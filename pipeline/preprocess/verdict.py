"""Whether what was written may be used: all rows accounted for, few of them bad, no split and no class empty."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import DATA, UserError
from pipeline.records import SPLITS

OPTIONS = {
    "train": "lower --data.validation-fraction or --data.test-fraction",
    "val": "raise --data.validation-fraction",
    "test": "raise --data.test-fraction, or check the source's own test rows",
}
"""What fills an empty split."""


def totals(counts: dict[str, Any]) -> dict[str, Any]:
    """The manifest's counts: in = good + dead, for each shard of the source and over all, and good by split."""
    by_shard = {
        shard: {kind: found.get(kind, 0) for kind in ("in", "good", "dead")}
        for shard, found in counts["by_shard"].items()
    }
    for shard, found in by_shard.items():
        if found["in"] != found["good"] + found["dead"]:
            raise AssertionError(f"rows of {shard} were lost or made up: {found}")
    splits = {split: sum(n for file, n in counts["rows"].items() if file.startswith(f"{split}-")) for split in SPLITS}
    sums = {kind: sum(found[kind] for found in by_shard.values()) for kind in ("in", "good", "dead")}
    if sums["good"] != sum(splits.values()):
        raise AssertionError(f"good rows and rows written differ: {sums}, {splits}")
    return {**sums, "by_shard": by_shard, **splits}


def check_bad_rows(total: dict[str, Any], allowed: float, letters: Path, keep: Path) -> None:
    """UserError when more than the share `allowed` of the rows is bad; the dead letters then stay at `keep`."""
    if total["in"] == 0:
        raise UserError("The source has no rows; check --data.name, --data.path and --data.limit.", DATA)
    if total["dead"] <= allowed * total["in"]:
        return
    text = letters.read_text(encoding="utf-8")
    keep.write_text(text, encoding="utf-8")
    bad = [json.loads(line) for line in text.splitlines()]
    reason, times = Counter(letter["reason"] for letter in bad).most_common(1)[0]
    example = next(letter for letter in bad if letter["reason"] == reason)
    name = example["id"] or f"row {example['row']} of {example['shard']}"
    raise UserError(
        f"{total['dead']} of {total['in']} rows are bad, --data.max-bad-fraction allows {allowed:.2%}; the commonest "
        f"reason is {reason!r} ({times} rows, such as {name}). All are listed in {keep}: repair the data or raise "
        "the option.",
        DATA,
    )


def check_splits(total: dict[str, Any]) -> None:
    for split in SPLITS:
        if not total[split]:
            raise UserError(f"Split {split!r} is empty; {OPTIONS[split]}.", DATA)


def check_classes(config: Config, labels: dict[str, dict[str, int]], expected: tuple[str, ...]) -> None:
    """UserError for a class without a training row (expected, or found in another split), and for too few classes."""
    classes = expected or tuple(sorted({name for found in labels.values() for name in found}))
    for name in classes:
        if not labels["train"].get(name):
            raise UserError(
                f"Class {name!r} has no training row; give it some, leave it out of the data, or correct "
                "--data.classes.",
                DATA,
            )
    if len(classes) < 2 or (config.task == "sentiment" and len(classes) != 2):
        wanted = "exactly two" if config.task == "sentiment" else "at least two"
        raise UserError(
            f"Training has {len(classes)} class(es) ({', '.join(classes)}); {config.task} needs {wanted}.", DATA
        )
