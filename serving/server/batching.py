"""Merges requests that wait at the same time into batches, by the rules of TF Serving's shared batch scheduler.

A batch is taken from a queue when it is full, or its first request has waited batch_timeout_micros, and a thread is
free; so with the default of 0 requests gather while all threads compute, and none waits for a timer. One queue serves
one version, set of inputs and set of outputs; all queues share the threads, in turn.

What is due first waits for a few turns of the event loop that bring nothing new, about 2 us each: gRPC hands over the
requests that have come one by one, some four turns apart, and each run of a small model costs 70 us beside its rows,
most of it for what falls out of the processor's caches.

Two things are kinder than there, and show only in errors: what expired in the queue is not computed even when others
of its batch are alive, and inputs of different types are never merged, so the one of the wrong type fails alone.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from serving.server import merging, metrics
from serving.server.batching_parameters import BatchingParameters
from serving.server.call import Call
from serving.server.errors import Code, RequestError
from serving.server.servable import Feeds, Servable

_NEVER = float("inf")
_QUIET_TURNS = 8
_GATHER_SECONDS = 0.002  # no longer, however many come
_Outcome = list[np.ndarray] | Exception


@dataclass(slots=True, eq=False)
class _Task:
    """A request, or a part of one that was split."""

    feeds: Feeds
    rows: int
    model: str
    deadline: float  # of time.monotonic; infinity: none
    future: asyncio.Future
    since: float


@dataclass(slots=True, eq=False)
class _Batch:
    rows: int = 0
    tasks: list[_Task] = field(default_factory=list)


class _Queue:
    """The batches that wait; the last one is open."""

    def __init__(self, fetches: tuple[str, ...], parameters: BatchingParameters):
        self.fetches, self.parameters = fetches, parameters
        self.batches = deque([_Batch()])

    def put(self, task: _Task) -> None:
        """Raises RequestError when it is full, or the task is larger than any batch."""
        parameters = self.parameters
        merging.check_size(task.rows, parameters)
        if self.batches[-1].rows + task.rows > parameters.largest:
            if len(self.batches) >= parameters.max_enqueued_batches:
                raise RequestError(
                    Code.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; currently "
                    f"{len(self.batches)} batches enqueued and max_enqueued_batches is "
                    f"{parameters.max_enqueued_batches}",
                )
            self.batches.append(_Batch())
        self._add(task)

    def split(self, task: _Task, futures: Callable[[], asyncio.Future]) -> list[asyncio.Future]:
        """Puts a task in parts, the first into what is left of the open batch. Raises RequestError."""
        parameters = self.parameters
        merging.check_size(task.rows, parameters)
        left = parameters.largest - self.batches[-1].rows
        if task.rows <= left:
            self._add(task)
            return [task.future]
        room = left + (parameters.max_enqueued_batches - len(self.batches)) * parameters.largest
        if task.rows > room:
            raise RequestError(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full; task size is "
                f"{task.rows} but scheduling capacity is only {room} (num_enqueued_batches={len(self.batches)}, "
                f"max_enqueued_batches={parameters.max_enqueued_batches}, "
                f"open_batch_size={self.batches[-1].rows}, max_execution_batch_size={parameters.largest})",
            )
        ends = [*range(left, task.rows, parameters.largest), task.rows]
        starts = [0, *ends[:-1]]
        parts = []
        for a, b in zip(starts, ends, strict=True):
            if a == b:  # the open batch was full
                continue
            if self.batches[-1].rows == parameters.largest:
                self.batches.append(_Batch())
            feeds = {name: array[a:b] for name, array in task.feeds.items()}
            parts.append(_Task(feeds, b - a, task.model, task.deadline, futures(), task.since))
            self._add(parts[-1])
        return [part.future for part in parts]

    def due(self) -> float:
        """When the next batch may be taken, on the clock of time.monotonic; infinity when there is none."""
        first = self.batches[0]
        if len(self.batches) > 1 or first.rows >= self.parameters.largest:
            return 0.0
        return first.tasks[0].since + self.parameters.batch_timeout_micros / 1e6 if first.tasks else _NEVER

    def take(self) -> list[_Task]:
        batch = self.batches.popleft()
        if not self.batches:
            self.batches.append(_Batch())
        return batch.tasks

    def _add(self, task: _Task) -> None:
        self.batches[-1].tasks.append(task)
        self.batches[-1].rows += task.rows


class Batcher:
    """Belongs to the event loop. `threads` batches run at a time.

    With `isolating`, the calls of a batch that failed are run again one by one, so that a bad row hurts only its own
    request; TF Serving gives the error to all.
    """

    def __init__(self, threads: int, *, isolating: bool = False):
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(threads, "batch")
        self._free = threads
        self._isolating = isolating
        self._queues: WeakKeyDictionary[Servable, dict[Any, _Queue]] = WeakKeyDictionary()
        self._waiting: dict[_Queue, Servable] = {}  # the queues that hold tasks, in the order of their turns
        self._timer: asyncio.Handle | None = None
        self._due = _NEVER  # when `_timer` goes off
        self._arrived = 0  # tasks so far

    async def run(self, servable: Servable, call: Call, model: str, deadline: float) -> list[np.ndarray]:
        """The values of `call.fetches`. `deadline` is of time.monotonic. Raises RequestError."""
        rows = merging.rows_of(call.feeds)
        queue = self._queue(servable, call)
        task = _Task(call.feeds, rows, model, deadline, self._loop.create_future(), time.monotonic())
        if queue.parameters.enable_large_batch_splitting:
            futures = queue.split(task, self._loop.create_future)
        else:
            queue.put(task)
            futures = [task.future]
        self._arrived += 1
        self._waiting.setdefault(queue, servable)
        self._wake(queue.due())
        if len(futures) == 1:
            return await futures[0]
        return merging.joined(await asyncio.gather(*futures))

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    def _queue(self, servable: Servable, call: Call) -> _Queue:
        queues = self._queues.get(servable)
        if queues is None:
            queues = self._queues[servable] = {}
        key = (call.fetches, *call.feeds, *[array.dtype.char for array in call.feeds.values()])
        queue = queues.get(key)
        if queue is None:
            assert servable.batching is not None
            queue = queues[key] = _Queue(call.fetches, servable.batching)
        return queue

    def _wake(self, due: float) -> None:
        """Has `_dispatch` called then; where that is now and the batch not full, it gathers first."""
        if self._free and due < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = due
            now = time.monotonic()
            if due > now:
                self._timer = self._loop.call_later(due - now, self._dispatch)
            elif due:
                self._timer = self._loop.call_soon(self._gather, self._arrived, 0, now + _GATHER_SECONDS)
            else:
                self._timer = self._loop.call_soon(self._dispatch)

    def _gather(self, seen: int, quiet: int, latest: float) -> None:
        """`seen` are the tasks of the turn before, `quiet` the turns since one came."""
        quiet = quiet + 1 if self._arrived == seen else 0
        if quiet > _QUIET_TURNS or time.monotonic() > latest:
            self._dispatch()
        else:
            self._timer = self._loop.call_soon(self._gather, self._arrived, quiet, latest)

    def _dispatch(self) -> None:
        self._timer, self._due = None, _NEVER
        now = time.monotonic()
        for queue, servable in list(self._waiting.items()):
            if not self._free:
                return
            if queue.due() <= now:
                del self._waiting[queue]
                self._start(servable, queue, queue.take())
                if queue.due() < _NEVER:
                    self._waiting[queue] = servable  # behind the others
        self._wake(min((queue.due() for queue in self._waiting), default=_NEVER))

    def _start(self, servable: Servable, queue: _Queue, tasks: list[_Task]) -> None:
        now = time.monotonic()
        alive = []
        for task in tasks:
            metrics.queued(queue.parameters.thread_pool_name, task.rows, (now - task.since) * 1e6)
            if task.future.done():
                metrics.dropped(task.model, "cancelled" if now < task.deadline else "expired")
            elif now >= task.deadline or not servable.fits(queue.fetches, task.deadline - now):
                metrics.dropped(task.model, "expired")
                task.future.set_exception(
                    RequestError(Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue")
                )
            else:
                alive.append(task)
        if alive and servable.is_short(queue.fetches):
            _deliver(alive, _run(servable, queue, alive, self._isolating, here=True))
        elif alive:
            self._free -= 1
            run = partial(_run, servable, queue, alive, self._isolating)
            running = self._loop.run_in_executor(self._threads, run)
            running.add_done_callback(partial(self._finish, alive))

    def _finish(self, tasks: list[_Task], running: asyncio.Future) -> None:
        self._free += 1
        self._wake(min((queue.due() for queue in self._waiting), default=_NEVER))
        _deliver(tasks, running.result())


def _deliver(tasks: list[_Task], outcomes: list[_Outcome]) -> None:
    for task, outcome in zip(tasks, outcomes, strict=True):
        if task.future.done():
            continue
        if isinstance(outcome, Exception):
            task.future.set_exception(outcome)
        else:
            task.future.set_result(outcome)


def _run(servable: Servable, queue: _Queue, tasks: list[_Task], isolating: bool, here: bool = False) -> list[_Outcome]:
    """What each task is answered. The batch may run until the latest of the deadlines."""
    latest = max(task.deadline for task in tasks)
    timeout_ms = None if latest == _NEVER else int((latest - time.monotonic()) * 1000)
    feeds = [task.feeds for task in tasks]
    try:
        return [*merging.run_merged(servable, feeds, queue.fetches, queue.parameters, timeout_ms, here)]
    except Exception as error:
        late = isinstance(error, RequestError) and error.code is Code.DEADLINE_EXCEEDED
        if not isolating or late or len(tasks) == 1:
            return [error for _ in tasks]
    return [_run(servable, queue, [task], isolating, here)[0] for task in tasks]
