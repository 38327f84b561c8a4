"""A call without input or output: what goes on the wire, what comes back, and when it is tried again.

A call is a generator. It yields `Send` and gets a reply (or an error of serving.errors thrown in), or yields `Pause`
and gets nothing; what it returns is the answer. A driver that blocks and one that awaits run the same generators.
"""

import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from serving.errors import DeadlineExceeded, Overloaded, Unavailable
from serving.settings import Retries


class Deadline:
    """When a call has to be over; `where` names the server in the error."""

    def __init__(self, seconds: float, where: str):
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._where = where

    def left(self) -> float:
        """Seconds, above 0. Raises DeadlineExceeded."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.exceeded()
        return left

    def exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer from {self._where} within {self._seconds:g} s")


class Send(NamedTuple):
    request: Any  # of the transport: connections.Request or channels.Request
    deadline: Deadline


class Pause(NamedTuple):
    seconds: float


Answer = TypeVar("Answer")
Steps = Generator[Send | Pause, Any, Answer]


class Exchange(NamedTuple):
    """One question to the server. `read` makes the answer of a reply, or raises a ServingError."""

    request: Any
    read: Callable[[Any], Any]
    repeatable: bool = True  # asked twice, it does no harm: the first may have been computed before the line broke


def tries(exchange: Exchange, deadline: Deadline, retries: Retries) -> Steps[Any]:
    """The answer, after as many tries as it takes. Raises the error of the last one when no other fits."""
    failures = 0
    while True:
        try:
            reply = yield Send(exchange.request, deadline)
            return exchange.read(reply)
        except (Unavailable, Overloaded) as error:
            failures += 1
            pause = retries.pause(failures, error) if exchange.repeatable else None
            if pause is None or pause >= deadline.left():
                raise
        yield Pause(pause)
