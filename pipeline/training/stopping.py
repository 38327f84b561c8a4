"""SIGTERM: the run saves after the next update and ends by itself, or is ended GRACE seconds later; a second SIGTERM
ends it at once.

Python runs a signal handler between two bytecodes of the main thread, so not while that thread sits in a call into C++
(XLA compiles for 20 s, a validation takes minutes). The system's own handler however writes the signal's number into a
pipe at once, and a thread waits at the other end; it needs no more than that the call has let go of the interpreter's
lock, as TensorFlow's calls do.
"""

import contextlib
import os
import select
import signal
import threading
import time
from pathlib import Path

from pipeline.errors import TERMINATED, UserError

GRACE = 1.5
"""Seconds from the first signal to the end of the process, come what may."""


class Stopping:
    """Listens to SIGTERM while entered, in the main thread; elsewhere it does nothing. What the process did on SIGTERM
    before, it does afterwards.

    To be entered around all that should end in time: what runs after it, a writer that is waited for, has no deadline.
    Leaving it after a signal raises UserError(TERMINATED), unless another exception is on its way.
    """

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.requested = False
        """Whether SIGTERM came; to be asked between two updates."""

    def __enter__(self) -> "Stopping":
        self._listens = threading.current_thread() is threading.main_thread()  # no other may set a handler
        if self._listens:
            self._signals, self._end_of_system = os.pipe()
            os.set_blocking(self._end_of_system, False)  # a signal must never wait for the watcher
            self._watcher = threading.Thread(target=self._watch, name="sigterm", daemon=True)
            self._watcher.start()
            self._wakeup = signal.set_wakeup_fd(self._end_of_system, warn_on_full_buffer=False)
            self._handler = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._handler is None else self._handler)
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._end_of_system)  # the watcher reads the end of the pipe
            self._watcher.join()
            os.close(self._signals)
        if self.requested and error is None:
            raise UserError(f"{self.run_dir}: stopped by SIGTERM; {_AGAIN}", TERMINATED)

    def _request(self, number, frame) -> None:
        self.requested = True

    def _watch(self) -> None:
        poll, deadline = select.poll(), None
        poll.register(self._signals, select.POLLIN)
        while True:
            left = None if deadline is None else 1000 * max(0.0, deadline - time.monotonic())
            if not poll.poll(left):
                self._die(
                    f"its work was not done within {GRACE} s (in a fresh run with --train.plan given, fewer "
                    "--train.steps-per-call help)"
                )
            received = os.read(self._signals, 1)
            if not received:
                return
            if received[0] == signal.SIGTERM:  # Ctrl-C passes through here too
                if deadline is not None:
                    self._die("by a second one at once")
                self.requested, deadline = True, time.monotonic() + GRACE

    def _die(self, why: str) -> None:
        """One line and the end, without a lock that the main thread may hold, and without waiting for a reader."""
        line = (
            f"minibatch: {self.run_dir}: stopped by SIGTERM, {why}: all since the last checkpoint is lost; {_AGAIN}\n"
        )
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        with contextlib.suppress(OSError):
            if any(event & select.POLLOUT for _, event in poll.poll(0)):
                os.write(2, line.encode())
        os._exit(TERMINATED)


_AGAIN = "the same command (without --fresh) goes on from there."
