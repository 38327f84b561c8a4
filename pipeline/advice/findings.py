"""What the test and the gate found, in the order in which a reader wants it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.advice.text import number

Json = Mapping[str, Any]
LOWER_IS_BETTER = frozenset({"loss", "rmse", "mae"})
USUAL = ("accuracy", "rmse")
COUNTS = ("examples", "users")
MAX_CLASSES = 30  # of more than that, a confusion matrix shows its largest confusions only


@dataclass(frozen=True)
class Metric:
    """A test metric. `bounds`: what the gate asks of it; `live`: the live model's value, or None."""

    name: str
    value: Any
    interval: tuple[float, float] | None
    bounds: tuple[str, ...]
    live: float | None


@dataclass(frozen=True)
class Slices:
    """The table of slices: `names` of its metrics, the key metric first; rows from the worst to the best by it."""

    names: list[str]
    counts: list[str]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Confusion:
    """`table`: for each true class a row of (count, share of the row), or None for many classes; `pairs`: mistakes as
    (count, true, answered), the most frequent first."""

    classes: list[str]
    table: list[list[tuple[int, float]]] | None
    pairs: list[tuple[int, str, str]]


def verdict(decision: Json, pushed: Json) -> tuple[str, str]:
    """(accepted | refused | open, words)."""
    if not decision:
        return "open", "Not judged yet"
    if not decision.get("accepted"):
        return "refused", "Refused"
    return "accepted", f"Pushed as version {pushed['version']}" if pushed.get("version") else "Accepted, not pushed yet"


def key_metric(gate: Json, evaluation: Json, task: str | None) -> str:
    """The metric that comes first: one with a threshold, else the usual one, else whichever was measured."""
    measured = evaluation.get("metrics", {})
    bounded = [name for side in ("at_least", "at_most") for name in gate.get(side, {}) if "[" not in name]
    wanted = [*bounded, *(USUAL if measured else ())]
    usual = "rmse" if task == "recommendation" else "accuracy"
    return next((name for name in wanted if name in measured or not measured), next(iter(measured), usual))


def metrics(gate: Json, evaluation: Json, decision: Json, key: str) -> list[Metric]:
    """All test metrics, the key metric first."""
    checks = [check for side in ("reasons", "passed") for check in decision.get(side, ())]
    live = {check["metric"]: check.get("old") for check in checks if check.get("slice") == "all"}
    signs = {"at_least": "≥", "at_most": "≤"}
    found = []
    for name, value in evaluation.get("metrics", {}).items():
        interval = evaluation.get("intervals", {}).get(name)
        bounds = [f"{signs[side]} {number(gate[side][name])}" for side in signs if name in gate.get(side, {})]
        found.append(Metric(name, value, tuple(interval) if interval else None, tuple(bounds), live.get(name)))
    return sorted(found, key=lambda metric: metric.name != key)


def slices(evaluation: Json, key: str, smallest: int) -> Slices:
    """Slices of fewer than `smallest` examples are marked; those without the key metric come last."""
    parts = evaluation.get("slices", {})
    names = {name: None for values in parts.values() for name in values}
    shown = sorted((name for name in names if name not in COUNTS), key=lambda name: name != key)

    def order(part: str) -> tuple[bool, float]:
        value = parts[part].get(key)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return True, 0.0
        return False, -value if key in LOWER_IS_BETTER else value

    rows = [
        {"name": part, "small": parts[part].get("examples", 0) < smallest, "values": parts[part]}
        for part in sorted(parts, key=order)
    ]
    return Slices(shown, [name for name in COUNTS if name in names], rows)


def confusion(counts: Mapping[str, Mapping[str, int]]) -> Confusion | None:
    """True class -> answered class -> rows, as a table and as the most frequent mistakes; None without any."""
    if not counts:
        return None
    classes = list(dict.fromkeys([*counts, *(answer for row in counts.values() for answer in row)]))
    table = None
    if len(classes) <= MAX_CLASSES:
        rows = [[counts.get(true, {}).get(answer, 0) for answer in classes] for true in classes]
        table = [[(n, n / (sum(row) or 1)) for n in row] for row in rows]
    pairs = [(n, true, answer) for true, row in counts.items() for answer, n in row.items() if answer != true and n]
    return Confusion(classes, table, sorted(pairs, key=lambda pair: -pair[0])[:20])
