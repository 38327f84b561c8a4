"""Which runs are so short that the event loop makes them itself.

A change to a thread and back costs 50 to 200 us on a busy core, a small model needs 10. So what has proved short runs
where its request was read. It must not hold up other requests: whether it is short is measured on every run, and what
once took the loop long never runs there again.
"""

from collections import deque

_SHORT_MICROS = 300  # in a thread: the fastest of some runs, since each may have waited for Python's lock
_RUNS = 16
_TOO_LONG_MICROS = 1000  # on the loop, on average
_NEVER_AGAIN_MICROS = 20_000


class Pace:
    """Of one version and set of outputs."""

    __slots__ = ("_average", "_lately", "short")

    def __init__(self) -> None:
        self.short = False
        self._average = 0.0
        self._lately: deque[float] | None = deque(maxlen=_RUNS)  # None: never again

    def in_thread(self, micros: float) -> None:
        """`micros` went by during a run in a thread."""
        lately = self._lately  # of which the loop may just take leave
        if lately is not None:
            lately.append(micros)
            if len(lately) == _RUNS and min(lately) < _SHORT_MICROS:
                self._average = min(lately)
                lately.clear()
                self.short = True

    def on_loop(self, micros: float) -> None:
        """A run took `micros` of the loop's own time on a processor."""
        self._average += (micros - self._average) / _RUNS
        if micros > _NEVER_AGAIN_MICROS:
            self._lately = None
        if self._lately is None or self._average > _TOO_LONG_MICROS:
            self.short = False
