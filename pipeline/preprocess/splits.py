"""Which bucket, order and split a row falls into: functions of its contents alone, equal on every machine and run."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple


class Row(NamedTuple):
    """A clean row and where it came from."""

    features: dict[str, Any]
    shard: str
    number: int
    """Its place in the shard, from 0."""
    given: str | None
    """"train" or "test" where the source decides it."""

    @property
    def id(self) -> str:
        return self.features["id"]

    @property
    def place(self) -> tuple[str, str, int]:
        """Rows of the same id side by side, the one that comes first in the source in front."""
        return self.id, self.shard, self.number


@dataclass(frozen=True)
class Shares:
    """How much is held out, as shares of the rows that are not in the source's own test split."""

    by: Literal["hash", "time"]
    validation: float
    test: float
    """0 where the source has a test split of its own."""


def stable_hash(purpose: bytes, key: bytes) -> int:
    """64 bits that depend on nothing else (Python's `hash` is salted); hashes of different purposes are independent."""
    return int.from_bytes(blake2b(key, digest_size=8, person=purpose).digest(), "big")


def bucket(key: str, buckets: int) -> int:
    return stable_hash(b"bucket", key.encode()) % buckets


def shuffled(rows: Iterable[Row]) -> list[Row]:
    """The rows in an order that looks random and is always the same."""
    return sorted(rows, key=lambda row: (stable_hash(b"order", row.id.encode()), row.id))


def assign(rows: list[Row], shares: Shares, content: Callable[[dict[str, Any]], bytes]) -> dict[str, list[Row]]:
    """Rows by split; by time, `rows` must hold all the rows of each of its users."""
    splits: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    ours: list[Row] = []
    for row in rows:
        (splits["test"] if row.given == "test" else ours).append(row)
    if shares.by == "hash":
        for row in ours:
            splits[_by_hash(content(row.features), shares)].append(row)
        return splits
    users = defaultdict(list)
    for row in ours:
        users[row.features["user_id"]].append(row)
    for history in users.values():
        history.sort(key=lambda row: (row.features["timestamp"], row.id))
        test = _rounded(len(history) * shares.test)
        val = min(_rounded(len(history) * shares.validation), len(history) - test)
        train = len(history) - val - test
        splits["train"] += history[:train]
        splits["val"] += history[train : train + val]
        splits["test"] += history[train + val :]
    return splits


def _by_hash(content: bytes, shares: Shares) -> str:
    place = stable_hash(b"split", content) / 2**64  # uniform in [0, 1)
    if place < shares.test:
        return "test"
    return "val" if place < shares.test + shares.validation else "train"


def _rounded(value: float) -> int:
    return int(value + 0.5)
