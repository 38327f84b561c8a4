"""A load on trial in a process of its own: a SavedModel that brings TensorFlow down brings down that process alone.

What Python can catch is not told from here: the load that follows meets it, and knows the code for it.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from serving.server.errors import Code, RequestError

SECONDS = 600
"""After which a trial ends itself."""


def rehearse(version: Path, session: bytes, tags: list[str], iterations: int) -> None:
    """Loads `version` and runs its warm-up requests `iterations` times (0: not at all) in a child process, at a low
    priority. Raises RequestError(INTERNAL) when the child was ended by a signal, as a crash does."""
    words = [str(version), session.hex(), ",".join(tags), str(iterations)]
    done = subprocess.run(
        [sys.executable, "-m", __name__, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        number = -done.returncode
        ended = signal.Signals(number).name if number > 0 else f"exit code {done.returncode}"
        said = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise RequestError(Code.INTERNAL, f"{version} ended the process that loaded it on trial: {ended} ({said})")


def _load(version: Path, session: bytes, tags: list[str], iterations: int) -> None:
    import tensorflow as tf

    from serving.server.servable import Servable
    from serving.server.warmup import warm_up

    servable = Servable(version, None, tf.compat.v1.ConfigProto.FromString(session), tags)
    if iterations:
        warm_up(servable, version, iterations)


if __name__ == "__main__":
    signal.alarm(SECONDS)
    os.nice(10)
    with contextlib.suppress(Exception):
        _load(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[3].split(","), int(sys.argv[4]))
    os._exit(0)
