"""LIVE.json: which versions of a model the serving root offers, and which of them a request without a version gets.

    <serving root>/<model>/LIVE.json   {"format": 1, "stable": 3, "previous": 2, "canary": 4, "percent": 20}

It is replaced as a whole, so a reader sees the old or the new one. All versions that it names are kept loaded; a
rollback or a promotion is then a change of this pointer and loads nothing.
"""

import json
import random
import zlib
from pathlib import Path
from typing import NamedTuple

NAME = "LIVE.json"
FORMAT = 1


class Live(NamedTuple):
    """`percent` of the requests go to `canary`; `previous` is loaded for a rollback alone."""

    stable: int
    previous: int | None = None
    canary: int | None = None
    percent: float = 0

    @property
    def versions(self) -> set[int]:
        return {version for version in (self.stable, self.previous, self.canary) if version is not None}

    @property
    def labels(self) -> dict[str, int]:
        return {"stable": self.stable} | ({} if self.canary is None else {"canary": self.canary})

    def preferred(self, request_id: str | None) -> list[int]:
        """Which version answers: the first of these that is loaded. One request id always gives the same list."""
        order = [version for version in (self.stable, self.previous) if version is not None]
        return order if self.canary is None or not self._for_canary(request_id) else [self.canary, *order]

    def _for_canary(self, request_id: str | None) -> bool:
        drawn = random.getrandbits(32) if request_id is None else zlib.crc32(request_id.encode("utf-8", "replace"))
        return drawn % 10_000 < self.percent * 100


def read(model: Path) -> Live | None:
    """The live state of a model folder; None without one. Raises ValueError in one line for a file that is none."""
    path = model / NAME
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r} instead of {FORMAT}")
        live = Live(found["stable"], found["previous"], found["canary"], found["percent"])
        if any(type(version) is not int for version in live.versions):
            raise ValueError("a version is not a whole number")
        if type(live.percent) not in (int, float) or not 0 <= live.percent <= 100:
            raise ValueError(f"percent is {live.percent!r}, not from 0 to 100")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not a live state: {error!r}") from None
    return live


def stamp(model: Path) -> tuple[int, int] | None:
    """Differs when LIVE.json was replaced; None without one."""
    try:
        found = (model / NAME).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
