"""The thread that looks at the folders and takes the steps that follow."""

import logging
import threading
import time
from typing import Any

from serving.server.lifecycle import Models
from serving.server.source import Source

log = logging.getLogger("serving")

_LIVE_SECONDS = 0.2  # a rollback is to be seen at once


class Upkeep:
    """`poll_seconds` between two looks at the folders; 0 or less: only at the start and after a reload."""

    def __init__(self, models: Models[Any], source: Source, poll_seconds: float):
        self._models, self._source, self._poll_seconds = models, source, poll_seconds
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when no further load begins; one under way goes on in its thread."""
        self._stopping = True
        self._models.stirred.set()
        self._thread.join()

    def _run(self) -> None:
        polled = time.monotonic()  # the caller polled before the start
        while not self._stopping:
            self._models.stirred.clear()
            try:
                due = 0 < self._poll_seconds <= time.monotonic() - polled
                if due or self._source.overdue.is_set() or (self._poll_seconds > 0 and self._source.live_changed()):
                    polled = time.monotonic()
                    self._source.poll()
                while not self._stopping and self._models.act():
                    pass
            except Exception:  # a broken folder must not end the updates of all
                log.exception("the models could not be brought up to date")
            self._models.stirred.wait(self._patience(polled))

    def _patience(self, polled: float) -> float | None:
        waits = [self._models.seconds_to_retry()]
        if self._poll_seconds > 0:
            waits += [self._poll_seconds - (time.monotonic() - polled), _LIVE_SECONDS]
        known = [max(0.0, wait) for wait in waits if wait is not None]
        return min(known) if known else None
