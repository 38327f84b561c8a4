"""Models without TensorFlow and without threads: servables are empty shells, and a test takes every step itself."""

from pathlib import Path

from serving.server.errors import Code, RequestError
from serving.server.lifecycle import Models


class Shell:
    def __init__(self, path):
        self.path, self.closed = path, False

    def close(self):
        self.closed = True


class Setting:
    """Models whose loads fail for the paths in `broken`; `run` does what the threads would, `now` is the clock."""

    def __init__(self, **options):
        self.broken, self.loaded, self.jobs, self.now = set(), [], [], 0.0
        self.models = Models(self._load, self.jobs.append, clock=lambda: self.now, **options)

    def _load(self, path):
        self.loaded.append(path)
        if path in self.broken:
            raise RequestError(Code.DATA_LOSS, f"{path} is broken")
        return Shell(path)

    def aspire(self, *numbers, name="m", on_disk=()):
        self.models.aspire(name, {number: Path(f"{name}/{number}") for number in numbers}, on_disk)

    def run(self):
        """Until nothing is left to do now."""
        while self.models.act() or self.jobs:
            while self.jobs:
                self.jobs.pop(0)()

    def states(self, name="m"):
        return {number: state.value for number, state, _ in self.models.status(name)}
