"""What every source is: shards to hand out, and a function that reads one. Beam starts from nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Shard:
    """A small, picklable description of a part of the source; never the rows themselves."""

    name: str
    """Unique within the source; row ids start with it or are unique without it."""
    split: str | None
    """"train" or "test" where the source decides it; None where we do."""
    where: dict[str, Any] = field(default_factory=dict)
    """What `read` needs: file, range, ..."""


class Source(Protocol):
    """`read` yields raw rows: {"id": str, **features of pipeline.records.FEATURES[task]}.

    Values are as the source has them (bytes or str for strings, numbers or numeric text for numbers); a field the
    source lacks is absent or None. Whether a row is any good is decided by preprocess, not here: a source never drops
    a row.
    Labels are class NAMES, never indices, so that records can be read without the source. A row may also hold "group":
    rows of one group (the reviews of one film) are alike, and splitting a group over train and test flatters the test.
    """

    task: str
    classes: tuple[str, ...]
    """Class names in order, if the source knows them; () if not."""

    def shards(self) -> list[Shard]:
        """Descriptors of all parts, without reading rows; in a fixed order."""
        ...

    def read(self, shard: Shard) -> Iterator[dict[str, Any]]:
        """The rows of a shard, the same in the same order each time. Raises UserError for a file that is broken."""
        ...

    def identity(self) -> dict[str, Any]:
        """JSON values that name exactly this input (names, versions, sizes, SHA-256), for the records' fingerprint."""
        ...
