"""The commit protocol of every directory that a stage hands over, and the check its readers make.

Write into `<parent>/.tmp-<host>-<pid>-<hex>`, fsync the files, write MANIFEST.json, fsync, one rename, fsync the
parent. A directory under its final name is therefore whole; a reader still verifies it, since disks and people
change files later.
"""

import errno
import hashlib
import hmac
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import CANNOT_WRITE, MISSING, Corrupt, UserError, storage_failure

NAME = "MANIFEST.json"
SEAL = "manifest_sha256"
"""Key in the manifest: the checksum of all the rest of it, since facts such as a step or a seed rot as files do."""
SIGNATURE = "manifest_hmac_sha256"
"""Key in a signed manifest: HMAC-SHA256 of all of it but these two, which a server that has the key can ask for."""


@dataclass
class Draft:
    """A directory being written: put files under `path`, and what should stand in the manifest beside them in `facts`.

    `rows` maps a file's relative path to its row count, for files that have rows.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    key: bytes | None = None
    """Signs the manifest."""


@contextmanager
def committing(destination: Path, exist_ok: bool = False) -> Iterator[Draft]:
    """Yields a draft; on a clean exit it becomes `destination` in one rename, on an exception it is removed.

    With `exist_ok` a destination that another process committed meanwhile is kept and ours dropped (outputs whose
    name is a fingerprint are equal anyway). Raises UserError(CANNOT_WRITE) when the disk is full or read-only.
    """
    destination = Path(destination)
    temporary = draft_name(destination.parent)
    new = [folder for folder in temporary.parents if not folder.exists()]
    try:
        temporary.mkdir(parents=True)
        draft = Draft(temporary)
        yield draft
        files = _describe(temporary, draft.rows)
        manifest = json.loads(json.dumps({**draft.facts, "files": files}))  # as a reader will see it
        manifest.pop(SIGNATURE, None)  # of what the facts were copied from
        if draft.key:
            manifest[SIGNATURE] = hmac.digest(draft.key, _canonical(manifest), "sha256").hex()
        _write_synced(temporary / NAME, json.dumps({**manifest, SEAL: _seal(manifest)}, indent=1, sort_keys=True))
        for folder in [temporary, *(p for p in temporary.rglob("*") if p.is_dir())]:
            _sync(folder)
        for folder in new:
            _sync(folder.parent)
        _rename(temporary, destination, exist_ok)
    except UserError:
        raise
    except Exception as error:  # TensorFlow's for a full disk is no OSError
        reason = storage_failure(error)
        if reason is None or not _concerns(error, temporary):
            raise
        raise UserError(
            f"Cannot write {destination}: {reason}. Nothing was changed; free space or choose another folder and "
            "repeat the command.",
            CANNOT_WRITE,
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(directory: Path) -> dict[str, Any]:
    """The manifest of a committed directory, files unchecked. Raises UserError when it is missing or unreadable."""
    path = Path(directory) / NAME
    try:
        manifest = json.loads(path.read_bytes())
        if not all({"bytes", "sha256"} <= file.keys() for file in manifest["files"].values()):
            raise KeyError("bytes or sha256 of a file")
        sealed = {key: value for key, value in manifest.items() if key != SEAL}
        if manifest.get(SEAL, _seal(sealed)) != _seal(sealed):
            raise ValueError("it has changed since it was written")
        return sealed
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{directory} has no {NAME}: it was not committed by minibatch, or not there at all.", MISSING
        ) from None
    except KeyError as error:
        raise Corrupt(f"{path} lacks {error}; rebuild {directory}.") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Corrupt(f"{path} is not readable ({error}); rebuild {directory}.") from None


def verify(directory: Path) -> dict[str, Any]:
    """The manifest, after every file was compared with it: present, of the size and SHA-256 written, and no stray file.

    Raises Corrupt naming the first file that differs.
    """
    directory = Path(directory)
    manifest = read(directory)
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise Corrupt(f"{path} is missing, but stands in {NAME}; rebuild {directory}.")
        if (size := path.stat().st_size) != expected["bytes"]:
            raise Corrupt(f"{path} has {size} bytes instead of {expected['bytes']}; rebuild {directory}.")
        try:
            found = digest(path)
        except OSError as error:
            raise Corrupt(f"{path} cannot be read ({error.strerror}); rebuild {directory}.") from None
        if found != expected["sha256"]:
            raise Corrupt(f"{path} has changed since it was written (SHA-256 differs); rebuild {directory}.")
    stray = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()} - {*manifest["files"], NAME}
    if stray:
        raise Corrupt(f"{directory / min(stray)} does not stand in {NAME}; remove it or rebuild {directory}.")
    return manifest


def is_committed(directory: Path) -> bool:
    return (Path(directory) / NAME).is_file()


def remove(directory: Path) -> None:
    """Removes a committed directory, first out of sight in one rename: no reader sees half of it."""
    directory = Path(directory)
    doomed = draft_name(directory.parent)
    os.rename(directory, doomed)
    _sync(directory.parent)
    shutil.rmtree(doomed)


def sweep(parent: Path, alone: bool = False) -> list[Path]:
    """Removes the drafts that killed processes of this host left in `parent`; returns what it removed.

    `alone`: the caller holds a lock on `parent`, so that every draft there is a dead one's, whatever its host and
    process: in a container the next process has another host name, or the same number.
    """
    mine = re.compile(rf"\.tmp-{re.escape(socket.gethostname())}-(\d+)-[^-]+")
    removed = []
    for path in Path(parent).glob(".tmp-*"):
        made = mine.fullmatch(path.name)
        if alone or (made and not _alive(int(made[1]))):
            path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def files_fingerprint(directory: Path) -> str:
    """The fingerprint of a committed directory's files, by its manifest. Raises Corrupt."""
    return fingerprint(read(directory)["files"])


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """16 hex digits that name a JSON-like value: equal values, equal names, on every machine."""
    return _seal(value)[:16]


def code_fingerprint(*places: str) -> str:
    """Names the source text of modules or folders, given relative to the repository (`"pipeline/records.py"`)."""
    root = Path(__file__).parent.parent
    files = [f for place in places for f in ([root / place] if place.endswith(".py") else (root / place).rglob("*.py"))]
    return fingerprint({str(f.relative_to(root)): digest(f) for f in sorted(files)})


def write_file(path: Path, text: str) -> None:
    """Replaces a single file atomically: a reader sees the old text or the new."""
    temporary = draft_name(path.parent)
    try:
        _write_synced(temporary, text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def draft_name(parent: Path) -> Path:
    """A name for a draft in `parent`, which `sweep` finds once this process is gone."""
    return parent / f".tmp-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _seal(value: Any) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=os.fspath, separators=(",", ":")).encode()


def _concerns(error: Exception, temporary: Path) -> bool:
    """Whether the error is about our files, not about something that the caller read inside the block."""
    name = getattr(error, "filename", None)
    return not isinstance(name, str) or temporary.is_relative_to(name) or Path(name).is_relative_to(temporary)


def _describe(directory: Path, rows: dict[str, int]) -> dict[str, dict[str, Any]]:
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        _sync(path)
        name = str(path.relative_to(directory))
        files[name] = {"bytes": path.stat().st_size, "sha256": digest(path)}
        if name in rows:
            files[name]["rows"] = rows[name]
    return files


def _rename(source: Path, destination: Path, exist_ok: bool) -> None:
    """Returns when the rename is on the disk; undoes one that the disk refuses to note."""
    try:
        os.rename(source, destination)  # onto a file or a folder that is not empty this fails: nothing is overwritten
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if not (exist_ok and is_committed(destination)):
            raise UserError(f"{destination} exists already; it is never overwritten.", CANNOT_WRITE) from None
        return
    try:
        _sync(destination.parent)
    except OSError:
        os.rename(destination, source)
        raise


def _write_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network disks keep folders safe unasked
            raise
    finally:
        os.close(descriptor)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # the second: more digits than a process has
        return False
    except PermissionError:
        return True
    return True
