"""A disk that fails, or a process that dies, at the n-th call that the commit protocol makes of the system."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from pipeline import manifest


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, and no call reaches the disk after it, so that nobody can tidy up."""


def killed(name: str) -> None:
    raise Killed(name)


def failing(number: int) -> Callable[[str], None]:
    """The call named fails with this errno, in the type that the callee's library raises."""

    def fail(name: str) -> None:
        if name == "SaveV2":
            raise tf.errors.UnknownError(None, None, f"state_temp/part-0; {os.strerror(number)} [Op:SaveV2]")
        raise OSError(number, os.strerror(number))

    return fail


class Calls:
    """How many there were, and their names."""

    def __init__(self) -> None:
        self.names: list[str] = []


@contextmanager
def at(n: int, act: Callable[[str], None]) -> Iterator[Calls]:
    """Runs the block with `act(name)` in the place of the n-th call (from 1) of the system's that writes, reads back,
    renames or removes; with `act=killed` in the place of every later one too. A tensor file is left half written."""
    calls = Calls()

    def counted(name: str, original: Callable) -> Callable:
        def call(*arguments, **options):
            calls.names.append(name)
            count = len(calls.names)
            if count == n or (count > n and act is killed):
                if name == "SaveV2" and count == n:
                    original(*arguments, **options)
                    for path in Path(options["prefix"]).parent.iterdir():
                        os.truncate(path, path.stat().st_size // 2)
                act(name)
            return original(*arguments, **options)

        return call

    places = [(os, name) for name in ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir")]
    originals = [(place, name, getattr(place, name)) for place, name in [*places, (tf.raw_ops, "SaveV2")]]
    for place, name, original in originals:
        setattr(place, name, counted(name, original))
    manifest.open = counted("read or write", open)  # type: ignore[attr-defined]  # its own, so that nobody else's counts
    try:
        yield calls
    finally:
        for place, name, original in originals:
            setattr(place, name, original)
        del manifest.open  # type: ignore[attr-defined]


ERRORS = {name: failing(getattr(errno, name)) for name in ("ENOSPC", "EIO", "EINTR", "EROFS", "EDQUOT")}
