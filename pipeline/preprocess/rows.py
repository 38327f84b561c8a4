"""What a usable row is: a task turns a raw row into clean features, or says with `BadRow` why it cannot."""

import numbers
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LARGEST = float(np.finfo(np.float32).max)


class BadRow(Exception):
    """The reason why a row becomes a dead letter (the same words for the same fault), and the value at fault."""

    def __init__(self, reason: str, value: Any = None):
        super().__init__(reason)
        self.value = value


class Task(Protocol):
    """What differs between images, texts and ratings. Picklable: it travels to the workers.

    A "part" is what the analysis knows about some training rows. Parts add up to the same numbers in any order, so that
    the analysis is the same to the last bit however the runner spreads the rows.
    """

    def clean(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The features of `pipeline.records` (and, under other names, what `part` needs). Raises BadRow."""
        ...

    def content(self, row: dict[str, Any]) -> bytes:
        """What must not be torn apart: rows of equal content fall into the same split."""
        ...

    def part(self, members: Iterable[dict[str, Any]]) -> Any:
        """The part of these rows; of no rows, the neutral one."""
        ...

    def add(self, into: Any, part: Any) -> None:
        """Adds `part` to `into`, in place."""
        ...

    def write(self, part: Any, class_counts: dict[str, int], directory: Path) -> None:
        """Writes the files that `models.analysis` reads, from the part of all training rows (at least one)."""
        ...


def string(row: dict[str, Any], name: str) -> str:
    """A field that must be a non-empty string; bytes must be UTF-8."""
    value = given(row, name)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise BadRow(f"{name} is not UTF-8", value) from None
    if not isinstance(value, str):
        raise BadRow(f"{name} is not a string", value)
    if not value.strip():
        raise BadRow(f"{name} is empty", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            raise BadRow(f"{name} is not UTF-8", value) from None
    return value


def label(row: dict[str, Any], classes: tuple[str, ...]) -> str:
    """The class name; with `classes` given, one of them."""
    value = string(row, "label")
    if classes and value not in classes:
        raise BadRow("label out of range", value)
    return value


def group(row: dict[str, Any]) -> dict[str, str]:
    """{"group": its name} where the source says that rows belong together, else {}."""
    return {"group": string(row, "group")} if row.get("group") is not None else {}


def grouped(row: dict[str, Any], content: bytes) -> bytes:
    """What decides the split: the row's group, which wins over its own content."""
    return b"group\0" + row["group"].encode() if "group" in row else content


def number(row: dict[str, Any], name: str) -> float:
    """A finite number, or the text of one, rounded to float32 as it is recorded."""
    value = given(row, name)
    try:
        exact = float(_numeric(value))
    except (ValueError, OverflowError):
        raise BadRow(f"{name} is not a number", value) from None
    if not abs(exact) <= LARGEST:  # NaN compares false
        raise BadRow(f"{name} is not finite", value)
    return float(np.float32(exact))


def integer(row: dict[str, Any], name: str) -> int:
    """A whole number that fits 64 bits, or the text of one; 3.0 is one, 3.5 is not."""
    value = given(row, name)
    try:
        whole = int(_numeric(value))
    except (ValueError, OverflowError):  # OverflowError: infinite
        raise BadRow(f"{name} is not a whole number", value) from None
    if isinstance(value, numbers.Real) and whole != value:
        raise BadRow(f"{name} is not a whole number", value)
    if not -(2**63) <= whole < 2**63:
        raise BadRow(f"{name} does not fit 64 bits", value)
    return whole


def _numeric(value: Any) -> Any:
    """The value, if it is a number or text that Python and everyone else would read as the same one."""
    if isinstance(value, bytes):
        value = value.decode()  # a UnicodeDecodeError is a ValueError
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real | str)
        or (isinstance(value, str) and "_" in value)
    ):
        raise ValueError
    return value


def given(row: dict[str, Any], name: str) -> Any:
    """A field that must be there, in a row that must be a mapping."""
    if not isinstance(row, dict):
        raise BadRow("row is not a mapping", row)
    if row.get(name) is None:
        raise BadRow(f"missing field: {name}")
    return row[name]


def excerpt(value: Any) -> str:
    """The start of a value in printable ASCII, safe in any terminal or log."""
    if isinstance(value, str | bytes):
        return ascii(value[:60]) + (f" and {len(value) - 60} more" if len(value) > 60 else "")
    return "" if value is None else ascii(value)[:80]
