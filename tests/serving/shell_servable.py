"""A servable without TensorFlow: what it computes is numpy, how long it takes the test decides."""

import threading

import numpy as np

from serving.server.batching_parameters import BatchingParameters
from serving.server.call import Call
from serving.server.errors import RequestError, invalid


class Shell:
    """`y` is `x` plus 1 in every row. A row with 13 fails its whole run. Runs wait for `gate`."""

    def __init__(self, batching: BatchingParameters | None = None, short: bool = False):
        self.batching, self.short = batching, short
        self.needs = 0.0
        self.ranges: dict = {}
        self.monitor = None
        self.gate = threading.Event()
        self.gate.set()
        self.runs: list[tuple[dict[str, np.ndarray], int | None]] = []
        self.threads: list[threading.Thread] = []

    def is_short(self, fetches):
        return self.short

    def fits(self, fetches, seconds):
        return seconds > self.needs

    def run(self, feeds, fetches, timeout_ms=None):
        self.runs.append((dict(feeds), timeout_ms))
        self.threads.append(threading.current_thread())
        assert self.gate.wait(20)
        if any((array == 13).any() for array in feeds.values() if array.dtype != object):
            raise invalid("13 brings bad luck")
        made = {"y": lambda: feeds["x"] + 1, "size": lambda: np.int32(feeds["x"].size), "two": lambda: np.zeros(2)}
        return [np.asarray(made[name]()) for name in fetches]

    def run_here(self, feeds, fetches):
        return self.run(feeds, fetches)

    def named(self, fetches, values):
        return dict(zip(fetches, values, strict=True))

    def close(self):
        pass

    @property
    def sizes(self) -> list[int]:
        """Rows of each run."""
        return [len(next(iter(feeds.values()))) for feeds, _ in self.runs]


class Models:
    """Of one servable, with what it was asked for and how many hold it."""

    def __init__(self, servable: Shell):
        self.servable = servable
        self.held = 0
        self.asked: list[tuple] = []

    def lease(self, name, wanted=None, request_id=None):
        self.asked.append((name, wanted, request_id))
        return _Lease(self)


class _Lease:
    def __init__(self, models: Models):
        self._models = models

    def __enter__(self):
        self._models.held += 1
        return 7, self._models.servable

    def __exit__(self, *_):
        self._models.held -= 1


def call(*rows, fetches=("y",), dtype=np.float32) -> Call:
    """Of `x` [rows]; its answer is the list of values."""
    return Call({"x": np.array(rows, dtype)}, fetches, lambda values: [value.tolist() for value in values])


def refused(error: RequestError) -> tuple[str, str]:
    return error.code.name, error.message
