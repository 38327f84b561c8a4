"""While requests are refused, no thread of this process interrupts another one that computes.

A request passes through five threads of gRPC's and ours. Each of them wakes up at once and takes the core from the
model, some thirteen times for a request that is only refused. Under Linux's batch policy what wakes up waits for its
turn, a few milliseconds, and finds several requests then. At rest that would only delay answers, so it ends a while
after the last refusal.
"""

import asyncio
import contextlib
import os

_SECONDS = 1.0


class Turns:
    """Belongs to the event loop that is running when it is made. Without Linux, or under another policy, it does
    nothing."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._possible = hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER
        self._taken = False
        self._last = 0.0

    def take(self) -> None:
        """A request was refused."""
        self._last = self._loop.time()
        if self._possible and not self._taken:
            self._taken = True
            _schedule(os.SCHED_BATCH)
            self._loop.call_later(_SECONDS, self._look)

    def _look(self) -> None:
        if self._taken and self._loop.time() - self._last < _SECONDS:
            self._loop.call_later(_SECONDS, self._look)
        else:
            self.close()

    def close(self) -> None:
        if self._taken:
            self._taken = False
            _schedule(os.SCHED_OTHER)


def _schedule(policy: int) -> None:
    """Of all threads there are; new ones take after the one that starts them."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended, or a sandbox forbids it
            os.sched_setscheduler(int(thread), policy, os.sched_param(0))
