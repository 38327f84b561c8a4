"""How long the runs of a version take: what is short stays on the event loop, what cannot end in time does not begin.

A change to a thread and back costs 50 to 200 us on a busy core, a small model needs 10. So what has proved short runs
where its request was read. It must not hold up other requests: whether it is short is measured on every run, and what
once took the loop long never runs there again.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from serving.server.errors import Code, RequestError

_SHORT_MICROS = 300
_RUNS = 16
_TOO_LONG_MICROS = 1000  # on the loop, on average
_NEVER_AGAIN_MICROS = 20_000


class Pace:
    """Of one version and set of outputs. `short`: may run on the loop."""

    __slots__ = ("_average", "_barred", "_fastest", "_lately", "_running", "short")

    def __init__(self) -> None:
        self.short = False
        self._barred = False
        self._average = 0.0
        self._fastest = 0.0  # of the last runs in a thread, since each may have waited for Python's lock or others
        self._lately: deque[float] = deque(maxlen=_RUNS)
        self._running: set[int] = set()  # threads

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        """A run in this thread. One that ended for lack of time counts as well, since it would have taken longer."""
        began, thread = time.perf_counter(), threading.get_ident()
        self._running.add(thread)
        try:
            yield
        except RequestError as error:
            if error.code is Code.DEADLINE_EXCEEDED:
                self.ran((time.perf_counter() - began) * 1e6)
            raise
        else:
            self.ran((time.perf_counter() - began) * 1e6)
        finally:
            self._running.discard(thread)

    def ran(self, micros: float) -> None:
        self._lately.append(micros)
        if len(self._lately) == _RUNS:
            self._fastest = min(self._lately)
            if self._fastest < _SHORT_MICROS and not self._barred and not self.short:
                self._average = self._fastest
                self.short = True

    def on_loop(self, micros: float) -> None:
        """A run took `micros` of the loop's own time on a processor."""
        self._average += (micros - self._average) / _RUNS
        self._barred = self._barred or micros > _NEVER_AGAIN_MICROS
        if self._barred or self._average > _TOO_LONG_MICROS:
            self.short = False
            self._lately.clear()

    def fits(self, micros: float) -> bool:
        """Whether a run may end within `micros`: as the fastest of late, or nothing else is running and it is tried."""
        return micros >= self._fastest or not self._running
