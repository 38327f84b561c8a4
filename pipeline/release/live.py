"""Which versions of a model answer: LIVE.json beside its versions, and the journal of how it came to be so.

    <exports>/<model>/LIVE.json       {"format": 1, "stable": 3, "previous": 2, "canary": 4, "percent": 20}
    <exports>/<model>/journal.jsonl   a line an event: push, canary, promote or rollback; who, when, from, to, why

A server reads LIVE.json alone and offers exactly the versions that it names. A change is made in this order: take the
lock, append the event and sync it, replace LIVE.json. So the journal's last line is what was decided: a process that
was killed between the two leaves a LIVE.json that is one event behind, and the next one to take the lock writes it.
A root without LIVE.json offers its newest committed version, as TF Serving would.
"""

import errno
import fcntl
import getpass
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from pipeline import manifest
from pipeline.errors import CANNOT_WRITE, CHANGED, Corrupt, UserError, storage_failure

NAME = "LIVE.json"
JOURNAL = "journal.jsonl"
LOCK = ".lock"
FORMAT = 1
PATIENCE = 30.0
"""Seconds to wait for another operator's command."""


@dataclass(frozen=True)
class Live:
    """`percent` of the requests that name no version go to `canary`, the others to `stable`; `previous` is kept loaded
    for a rollback."""

    stable: int
    previous: int | None = None
    canary: int | None = None
    percent: float = 0

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Live":
        """Raises ValueError, KeyError or TypeError for what is none."""
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']} instead of {FORMAT}")
        found = cls(values["stable"], values["previous"], values["canary"], values["percent"])
        if type(found.stable) is not int or {type(found.previous), type(found.canary)} - {int, type(None)}:
            raise ValueError("a version is no whole number")
        if type(found.percent) not in (int, float) or not 0 <= found.percent <= 100:
            raise ValueError(f"percent is {found.percent!r}")
        return found

    @property
    def versions(self) -> list[int]:
        """What a server offers, the stable one first."""
        return list(dict.fromkeys(v for v in (self.stable, self.canary, self.previous) if v is not None))


@dataclass(frozen=True)
class Event:
    event: str
    who: str
    when: str
    before: Live | None
    after: Live
    why: str

    @property
    def undone(self) -> set[int]:
        """The versions that a rollback took out of service: a canary, what was stable, or both."""
        if self.event != "rollback" or self.before is None:
            return set()
        return {v for v in (self.before.stable, self.before.canary) if v not in (None, self.after.stable)}


def versions(root: Path) -> dict[int, Path]:
    """Whatever stands under `root` with a whole number for a name, committed or not, by number."""
    names = Path(root).iterdir() if Path(root).is_dir() else []
    return {int(path.name): path for path in names if path.name.isascii() and path.name.isdigit()}


def newest(root: Path) -> int | None:
    """The highest committed version; None without any."""
    return max((number for number, path in versions(root).items() if manifest.is_committed(path)), default=None)


def read(root: Path) -> Live | None:
    """What LIVE.json says; None where there is none. Raises Corrupt."""
    path = Path(root) / NAME
    try:
        return Live.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} is not readable ({error}). {_anew(Path(root))}") from None


def current(root: Path) -> Live | None:
    """What a server of this root answers with; None when it has nothing to answer with. Raises Corrupt."""
    found = read(root)
    if found is None and (number := newest(root)) is not None:
        return Live(number)
    return found


def champion(root: Path) -> Path | None:
    """The directory of the stable version. Raises Corrupt."""
    found = current(root)
    return versions(root).get(found.stable, Path(root) / str(found.stable)) if found else None


def events(root: Path) -> list[Event]:
    """The journal, oldest first; a last line that was torn is left out. Raises Corrupt."""
    return _events(Path(root) / JOURNAL)[0]


def rolled_back(root: Path) -> dict[int, Event]:
    """The versions that were taken out of service and did not come back since, with the event. Raises Corrupt."""
    found: dict[int, Event] = {}
    for event in events(root):
        found |= dict.fromkeys(event.undone, event)
        for version in (event.after.stable, event.after.canary):
            found.pop(version, None)  # type: ignore[arg-type]
    return found


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Only one process changes what is live; when it begins, what a killed one left half done is finished.

    The lock goes with the process, however it ends. Raises UserError(CHANGED) when another holds it for PATIENCE
    seconds, and Corrupt when LIVE.json is neither what the last event made nor what it started from.
    """
    root = Path(root)
    with _lock(root) as file:
        _wait(file, root)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        _repair(root)
        yield


def commit(root: Path, event: str, before: Live | None, after: Live, why: str) -> None:
    """Journals the event and makes `after` live; to be called inside `locked`. Raises UserError(CANNOT_WRITE); then
    nothing has changed."""
    line = {
        "event": event,
        "who": f"{_user()}@{socket.gethostname()}",
        "when": _now(),
        "from": before.to_json() if before else None,
        "to": after.to_json(),
        "why": why,
    }
    try:
        _append(Path(root) / JOURNAL, json.dumps(line) + "\n")
    except OSError as error:
        raise _refused(root, error) from error
    _write(root, after)


def adopt(root: Path) -> None:
    """Writes down what is live without a LIVE.json, so that a version placed beside it is not served by being the
    newest; to be called inside `locked`."""
    if read(root) is None and (found := current(root)):
        _write(root, found)


def _write(root: Path, live: Live) -> None:
    try:
        manifest.write_file(Path(root) / NAME, json.dumps(live.to_json()) + "\n")
    except OSError as error:
        raise UserError(
            f"Cannot write {Path(root) / NAME}: {storage_failure(error) or error}. The change is journaled and not in "
            "force; free space and repeat the command.",
            CANNOT_WRITE,
        ) from error


def _repair(root: Path) -> None:
    path = root / JOURNAL
    found, whole = _events(path)
    try:
        if path.is_file() and path.stat().st_size > whole:
            os.truncate(path, whole)
    except OSError as error:
        raise _refused(root, error) from error
    if not found:
        return
    last, standing = found[-1], read(root)
    if standing == last.after:
        return
    if standing not in (None, last.before):
        raise Corrupt(
            f"{root / NAME} says {standing}, but the last event in {JOURNAL} ({last.event}, {last.when}) made "
            f"{last.after}: somebody else changed one of them. {_anew(root)}"
        )
    _write(root, last.after)


def _anew(root: Path) -> str:
    """In one line, since a server that polls in between puts the newest version live, perhaps one rolled back."""
    command = f"rm {root / NAME} && minibatch canary {root.name} --root {root.parent} --version STABLE"
    return (
        f"Without {NAME} servers answer with the newest version; write it anew in one line: `{command}`, STABLE being "
        f"`stable` in the last `to` of {JOURNAL}."
    )


def _events(path: Path) -> tuple[list[Event], int]:
    """The events, and how many bytes of the file they are: a last line that cannot be read was torn."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    found: list[Event] = []
    whole = 0
    for line in data.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("no end of line")
            values = json.loads(line)
            before = None if values["from"] is None else Live.from_json(values["from"])
            after = Live.from_json(values["to"])
            found.append(Event(values["event"], values["who"], values["when"], before, after, values["why"]))
        except (ValueError, KeyError, TypeError) as error:
            if whole + len(line) < len(data):
                raise Corrupt(f"{path}, line {len(found) + 1}, is not readable ({error}); restore it.") from None
            break
        whole += len(line)
    return found, whole


def _append(path: Path, text: str) -> None:
    """One line, on the disk when this returns; an error leaves the file as it was."""
    if not path.exists():
        manifest.write_file(path, "")  # its name is on the disk, too
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        data = text.encode()
        try:
            if os.write(descriptor, data) != len(data):  # so says a disk that just filled up
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _lock(root: Path) -> TextIO:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return open(root / LOCK, "a+")
    except OSError as error:
        raise _refused(root, error) from error


def _wait(file: TextIO, root: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
        file.seek(0)
        raise UserError(
            f"{root} is being changed by process {file.read().strip() or 'unknown'}; wait for it and repeat the "
            "command.",
            CHANGED,
        )


def _refused(root: Path, error: OSError) -> UserError:
    reason = storage_failure(error) or error
    return UserError(f"Cannot write in {root}: {reason}. Nothing was changed; repeat the command.", CANNOT_WRITE)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
