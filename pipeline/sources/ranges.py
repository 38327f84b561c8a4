"""Ranges of rows, so that a big split becomes shards that workers read side by side, and an even sample of a split."""

from typing import Any

ROWS = 5000
"""Rows out of one shard: few enough to spread over workers, enough that skipping to its start costs little."""


def ranges(rows: int, limit: int | None, size: int = ROWS) -> list[tuple[int, int]]:
    """[start, stop) pairs that cover `rows` rows in order, each with about `size` rows that are taken."""
    if limit is not None and limit < rows:
        size = size * rows // limit
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def taken(row: Any, rows: int, limit: int | None) -> Any:
    """Whether row number `row` (an int or an array) of a split of `rows` rows is among its `limit`.

    The taken rows are spread evenly over the split, since files are often sorted by class or by user: a row is taken
    when the whole part of row * limit / rows rises after it. Exactly min(limit, rows) rows are.
    """
    if limit is None or limit >= rows:
        return row >= 0
    return (row * limit) // rows != ((row + 1) * limit) // rows
