"""Calls that wait for a thread.

First come, first served, until the oldest has less than half of its time left: then the newest goes first. Under
overload the oldest are about to expire whatever is done, and to serve them means to compute in vain; the newest can
still be answered in time. What has expired, or lost its client, goes without being computed; so that hardly any does,
a request that would wait for more than half of its time is not to be put here at all.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from serving.server import metrics
from serving.server.errors import Code, RequestError

OUT_OF_TIME = "Timed out waiting for notification"
_INTERVALS = 16


class _Job(NamedTuple):
    model: str
    run: Callable[[int | None], Any]  # of the milliseconds that are left
    fits: Callable[[float], bool]  # whether so many seconds may be enough
    future: asyncio.Future
    began: float
    deadline: float


class Backlog:
    """Belongs to the event loop that is running when it is made; so many `threads` serve it."""

    def __init__(self, threads: int, clock: Callable[[], float] = time.monotonic):
        self._loop, self._clock = asyncio.get_running_loop(), clock
        self._threads = ThreadPoolExecutor(threads, "request")
        self._free = threads
        self._waiting: deque[_Job] = deque()
        self._interval = 0.0  # between two jobs that left while others waited, on average; 0 when none waits
        self._left: float | None = None  # when the last one did
        self._intervals = 0
        self._lock = threading.Lock()  # of all these

    def put(
        self, model: str, run: Callable[[int | None], Any], fits: Callable[[float], bool], deadline: float
    ) -> asyncio.Future:
        """What `run` returns or raises; or RequestError(DEADLINE_EXCEEDED) when its time would not be enough.

        `deadline` is of the clock, infinity for none.
        """
        job = _Job(model, run, fits, self._loop.create_future(), self._clock(), deadline)
        with self._lock:
            self._waiting.append(job)
            start = self._free > 0
            self._free -= start
        if start:
            self._threads.submit(self._serve)
        return job.future

    def is_hopeless(self, seconds: float) -> bool:
        """Whether a job that came now would wait for more than half of its `seconds`, at the pace of those before."""
        return 2 * len(self._waiting) * self._interval > seconds

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    def _serve(self) -> None:
        while job := self._next():
            left = job.deadline - self._clock()
            if left <= 0 or not job.fits(left):
                self._drop(job)
                continue
            try:
                result, error = job.run(None if left == float("inf") else int(left * 1000)), None
            except Exception as raised:
                result, error = None, raised
            self._settle(job.future, result, error)

    def _next(self) -> _Job | None:
        with self._lock:
            now = self._clock()
            while self._waiting and (self._waiting[0].future.done() or self._waiting[0].deadline <= now):
                self._drop(self._waiting.popleft())
            while self._waiting:
                oldest = self._waiting[0]
                pressed = oldest.deadline - now < now - oldest.began
                job = self._waiting.pop() if pressed else self._waiting.popleft()
                if not job.future.done():
                    self._note(now)
                    return job
                self._drop(job)
            self._free += 1
            self._note(now)
            return None

    def _note(self, now: float) -> None:
        """A job left at `now`, or none was there."""
        if not self._waiting:
            self._interval, self._left, self._intervals = 0.0, None, 0
            return
        if self._left is not None:
            self._intervals = min(self._intervals + 1, _INTERVALS)
            self._interval += (now - self._left - self._interval) / self._intervals
        self._left = now

    def _drop(self, job: _Job) -> None:
        late = not job.future.done() or self._clock() >= job.deadline
        metrics.dropped(job.model, "expired" if late else "cancelled")
        self._settle(job.future, None, RequestError(Code.DEADLINE_EXCEEDED, OUT_OF_TIME))

    def _settle(self, future: asyncio.Future, result: Any, error: Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(_set, future, result, error)


def _set(future: asyncio.Future, result: Any, error: Exception | None) -> None:
    if future.done():  # its request was cancelled
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
