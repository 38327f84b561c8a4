"""The one error a user is meant to read, and what the exit codes mean (numbers as in BSD's sysexits where they fit).

UserError            what is wrong, where, and what to do, in one line
`- Refused           the gate turned the candidate down
`- Corrupt           a committed directory is not what its manifest says
"""

import errno
import os

USAGE = 2  # unknown preset, unknown option, a value out of range
REFUSED = 3  # the gate said no; nothing was pushed
DATA = 65  # rows or files are there but wrong
MISSING = 66  # a file or folder is not there
UNAVAILABLE = 69  # a download or a server could not be reached
CANNOT_WRITE = 74  # disk full, read-only
CHANGED = 78  # the run is not in the state for this: other settings, unfinished, or trained by another process
INTERRUPTED = 130  # Ctrl-C
TERMINATED = 143  # stopped by SIGTERM after a checkpoint


class UserError(Exception):
    """`message` is shown as it is, in one line; `code` becomes the exit status of the command."""

    def __init__(self, message: str, code: int = DATA):
        super().__init__(message)
        self.code = code


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
