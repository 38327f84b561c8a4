"""The one error a user is meant to read, what raises it for a wrong option, and what the exit codes mean (numbers as in
BSD's sysexits where they fit).

UserError            what is wrong, where, and what to do, in one line
`- Refused           the gate turned the candidate down
`- Corrupt           a committed directory is not what its manifest says
"""

import argparse
import errno
import os
import re
from typing import Any, NoReturn

USAGE = 2  # unknown preset, unknown option, a value out of range
REFUSED = 3  # the gate said no; nothing was pushed
DATA = 65  # rows or files are there but wrong
MISSING = 66  # a file or folder is not there
UNAVAILABLE = 69  # a download or a server could not be reached
CANNOT_WRITE = 74  # disk full, read-only
CHANGED = 78  # the run is not in the state for this: other settings, unfinished, or trained by another process
INTERRUPTED = 130  # Ctrl-C
TERMINATED = 143  # stopped by SIGTERM after a checkpoint


_SECRET = r"(?:token|secret|password|passwd|api[_-]?key|credentials?)"
_NAME = rf"--?[\w.-]{{0,40}}{_SECRET}"
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/{1,2})[^/@\s]+@")  # of a URL; as a path it has one slash
_GIVEN = re.compile(rf"(?i)({_SECRET}=|{_NAME} +|authorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic) )?)[^\s\"',]+")
_NAMED = re.compile(rf"(?i){_NAME}")


def redacted(value: Any) -> Any:
    """Text, or JSON values, without what must stand in no log, report or manifest: user and password of a URL, and the
    value of what is called a token, secret or password. The word after `--password` is one, too."""
    if isinstance(value, str):
        return _GIVEN.sub(r"\1***", _USERINFO.sub(r"\1***@", value))
    if isinstance(value, dict):
        return {key: redacted(each) for key, each in value.items()}
    if isinstance(value, list):
        named = [False, *(isinstance(each, str) and bool(_NAMED.fullmatch(each)) for each in value)]
        return ["***" if hidden else redacted(each) for each, hidden in zip(value, named, strict=False)]
    return value


class UserError(Exception):
    """`message` is shown as it is, redacted, in one line; `code` becomes the exit status of the command."""

    def __init__(self, message: str, code: int = DATA):
        super().__init__(redacted(message))
        self.code = code


class Parser(argparse.ArgumentParser):
    """Says what is wrong as a UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` shows how.", USAGE)


class Refused(UserError):
    def __init__(self, message: str):
        super().__init__(message, REFUSED)


class Corrupt(UserError):
    def __init__(self, message: str):
        super().__init__(message, DATA)


def storage_failure(error: BaseException) -> str | None:
    """The system's words ("No space left on device") if `error` means that a disk is full, failing, read-only or not
    ours to use; None for any other error.

    TensorFlow and HDF5 raise types of their own, so that their text has to be read.
    """
    if isinstance(error, OSError) and error.errno in (*_REFUSED, *_FORBIDDEN):
        return os.strerror(error.errno)
    return next((os.strerror(number) for number in _REFUSED if os.strerror(number) in str(error)), None)


_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG)
