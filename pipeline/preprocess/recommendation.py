"""Ratings: a user, an item, a finite number; tables of the users and items that training sees."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.preprocess import rows


@dataclass
class Ratings:
    items: dict[str, list[str]]
    """User -> the item of each rating."""
    sums: list[float]
    """Sums of ratings, one a part; they are added up exactly, at the end."""
    lowest: float
    highest: float


@dataclass(frozen=True)
class Recommendation:
    needs_time: bool
    """Whether a row without a timestamp is bad; otherwise its timestamp is recorded as 0."""

    def clean(self, raw: dict[str, Any]) -> dict[str, Any]:
        row = {name: rows.string(raw, name) for name in ("id", "user_id", "item_id")}
        timed = self.needs_time or raw.get("timestamp") is not None
        return {
            **row,
            "rating": rows.number(raw, "rating"),
            "timestamp": rows.integer(raw, "timestamp") if timed else 0,
        }

    def content(self, row: dict[str, Any]) -> bytes:
        return f"{row['user_id']}\0{row['item_id']}".encode()

    def part(self, members: Iterable[dict[str, Any]]) -> Ratings:
        part = Ratings({}, [], math.inf, -math.inf)
        ratings = []
        for row in members:
            part.items.setdefault(row["user_id"], []).append(row["item_id"])
            ratings.append(row["rating"])
        if ratings:
            part.sums, part.lowest, part.highest = [math.fsum(ratings)], min(ratings), max(ratings)
        return part

    def add(self, into: Ratings, part: Ratings) -> None:
        for user, items in part.items.items():
            into.items.setdefault(user, []).extend(items)
        into.sums.extend(part.sums)
        into.lowest, into.highest = min(into.lowest, part.lowest), max(into.highest, part.highest)

    def write(self, part: Ratings, class_counts: dict[str, int], directory: Path) -> None:
        item_counts = Counter(item for items in part.items.values() for item in items)
        values = {
            "global_mean": math.fsum(part.sums) / item_counts.total(),
            "lowest": part.lowest,
            "highest": part.highest,
        }
        (directory / "analysis.json").write_text(json.dumps(values, indent=1) + "\n")
        users = (
            {"id": user, "count": len(part.items[user]), "items": sorted(set(part.items[user]))}
            for user in sorted(part.items)
        )
        _write_lines(directory / "users.jsonl", users)
        _write_lines(directory / "items.jsonl", ({"id": i, "count": item_counts[i]} for i in sorted(item_counts)))


def _write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(value) + "\n" for value in values)
