"""How long the runs of a version take: what is short stays on the event loop, what cannot end in time does not begin.

A change to a thread and back costs 50 to 200 us on a busy core, a small model needs 10. So what has proved short runs
where its request was read. It must not hold up other requests: whether it is short is measured on every run, and what
once took the loop long never runs there again.
"""

from collections import deque

_SHORT_MICROS = 300
_RUNS = 16
_TOO_LONG_MICROS = 1000  # on the loop, on average
_NEVER_AGAIN_MICROS = 20_000


class Pace:
    """Of one version and set of outputs. `short`: may run on the loop."""

    __slots__ = ("_average", "_barred", "_fastest", "_lately", "short")

    def __init__(self) -> None:
        self.short = False
        self._barred = False
        self._average = 0.0
        self._fastest = 0.0  # of the last runs in a thread, since each may have waited for Python's lock or others
        self._lately: deque[float] = deque(maxlen=_RUNS)

    def in_thread(self, micros: float) -> None:
        """A run in a thread that was not broken off took `micros`."""
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
        """Whether a run may end within `micros`, by the fastest of late; each no makes the next one less sure."""
        if micros >= self._fastest:
            return True
        self._fastest *= 0.9
        return False
