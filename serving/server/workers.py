"""Threads that run functions for an event loop, with few changes of thread.

A change of thread costs 50 to 100 us on one core, several times what TensorFlow needs for a small model. So functions
that are short wait for one thread and run after each other, and results come back to the loop many at a time.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

_STALL_SECONDS = 0.002


class _Job(NamedTuple):
    future: asyncio.Future
    function: Callable[[], Any]


class Workers:
    """Belongs to the event loop that is running when it is made.

    `sharing` is for short functions: one thread takes them all, and others only help when it has been stuck with one
    for 2 ms. Without, every function gets a thread at once, while there are any.
    """

    def __init__(self, threads: int, name: str, *, sharing: bool = False):
        self._loop = asyncio.get_running_loop()
        self._limit, self._name, self._sharing = threads, name, sharing
        self._lock = threading.Lock()  # guards the next three
        self._jobs: deque[_Job] = deque()
        self._awake = 0
        self._parked = 0
        self._taken = 0  # jobs so far; only ever compared
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._ended: deque[tuple[asyncio.Future, Any, BaseException | None]] = deque()
        self._telling = False  # the loop was told of `_ended` and has not looked yet
        self._watching = False

    def submit(self, function: Callable[[], Any]) -> asyncio.Future:
        """Its result, or what it raised. A function whose future is cancelled before its turn is not run."""
        future = self._loop.create_future()
        with self._lock:
            self._jobs.append(_Job(future, function))
            alone = self._awake == 0
        if alone or not self._sharing:
            self._rouse()
        elif not self._watching:
            self._watching = True
            self._loop.call_later(_STALL_SECONDS, self._watch, self._taken)
        return future

    def close(self) -> None:
        """No more functions; those that were submitted still run."""
        for _ in range(self._limit):
            self._wake.put(False)

    def _rouse(self) -> None:
        with self._lock:
            new = not self._parked
            if new and self._awake >= self._limit:
                return
            self._awake += 1
            self._parked -= not new
        if new:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        else:
            self._wake.put(True)

    def _watch(self, taken: int) -> None:
        """Jobs wait although a thread is awake: when it took none since, another helps."""
        self._watching = bool(self._jobs)
        if self._watching:
            if self._taken == taken:
                self._rouse()
            self._loop.call_later(_STALL_SECONDS, self._watch, self._taken)

    def _work(self) -> None:
        while True:
            with self._lock:
                job = self._jobs.popleft() if self._jobs else None
                if job is None:
                    self._awake -= 1
                    self._parked += 1
            if job is not None:
                self._taken += 1
                if not job.future.done():
                    self._run(job)
            elif not self._wake.get():
                return

    def _run(self, job: _Job) -> None:
        try:
            self._ended.append((job.future, job.function(), None))
        except BaseException as error:  # whoever waits for the result gets it
            self._ended.append((job.future, None, error))
        if not self._telling:
            self._telling = True
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._telling = False
        while self._ended:
            future, result, error = self._ended.popleft()
            if future.done():  # cancelled
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
