"""Which versions are in memory, and the one loop that changes it.

Availability preserving: a new version loads while the old one serves, and the old one is unloaded only when an aspired
version is available. A version that failed to load is not aspired until its folder went away and came back; so the next
older one stays, or is loaded at a start. (TF Serving keeps aspiring it, and at a start serves nothing.)
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from serving.server.config import ModelConfig, VersionPolicy, aspired, versions_on_disk
from serving.server.errors import Code, RequestError

log = logging.getLogger("serving")


class State(Enum):
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


class Closable(Protocol):
    def close(self) -> None: ...


Loaded = TypeVar("Loaded", bound=Closable)  # Servable, or a shell in tests: nothing here looks inside


@dataclass
class Version(Generic[Loaded]):
    """`error` is why it did not load; `users` counts the requests that hold `servable` now."""

    state: State = State.LOADING
    servable: Loaded | None = None
    error: RequestError | None = None
    users: int = 0
    failed: bool = False  # until its folder went away; `error` stays for the status page


class Action(NamedTuple):
    verb: str  # "load" or "unload"
    version: int


def next_action(on_disk: set[int], versions: Mapping[int, Version], policy: VersionPolicy) -> Action | None:
    """The one next step from what is in memory to what should be; None when there is nothing to do."""
    available = {number for number, version in versions.items() if version.state is State.AVAILABLE}
    wanted = aspired({number for number in on_disk if number not in versions or not versions[number].failed}, policy)
    missing = wanted - available
    if missing:
        return Action("load", max(missing))
    surplus = available - wanted
    if surplus and (available & wanted or not on_disk):
        return Action("unload", min(surplus))
    return None


class Models(Generic[Loaded]):
    """The models in memory. `step` belongs to one thread; everything else may be called from any.

    `load` makes the servable of a version folder, and raises anything when it cannot.
    """

    def __init__(self, load: Callable[[Path], Loaded]):
        self._load = load
        self._configs: dict[str, ModelConfig] = {}
        self._versions: dict[str, dict[int, Version[Loaded]]] = {}
        self._changed = threading.Condition()

    def add(self, config: ModelConfig) -> None:
        """Takes up a model; one of the same name stays as it is."""
        if config.name not in self._configs:
            self._versions[config.name] = {}
            self._configs[config.name] = config

    def step(self) -> None:
        """Reads every model's folder and loads and unloads until all is as it should be."""
        for config in list(self._configs.values()):
            on_disk = versions_on_disk(config.base_path)
            versions = self._versions[config.name]
            for number, version in versions.items():
                version.failed = version.failed and number in on_disk
            while action := next_action(set(on_disk), versions, config.policy):
                if action.verb == "load":
                    self._bring_up(config.name, action.version, on_disk[action.version])
                else:
                    self._take_down(config.name, action.version)

    @contextmanager
    def lease(self, name: str, number: int | None = None) -> Iterator[tuple[int, Loaded]]:
        """The version that answers (None: the highest available) and its servable, kept loaded meanwhile.

        Raises RequestError(NOT_FOUND) when there is none.
        """
        with self._changed:
            version_number, version = self._find(name, number)
            version.users += 1
        try:
            assert version.servable is not None
            yield version_number, version.servable
        finally:
            with self._changed:
                version.users -= 1
                self._changed.notify_all()

    def status(self, name: str, number: int | None = None) -> list[tuple[int, State, RequestError | None]]:
        """Number, state and load error of each version, newest first. Raises RequestError(NOT_FOUND)."""
        with self._changed:
            versions = sorted(self._versions.get(name, {}).items(), reverse=True)
            known = [(n, v.state, v.error) for n, v in versions if number is None or n == number]
        if not known:
            what = "any versions" if number is None else f"version {number}"
            raise RequestError(Code.NOT_FOUND, f"Could not find {what} of model {name}")
        return known

    def available(self) -> list[tuple[str, int]]:
        """Name and number of every version that answers."""
        with self._changed:
            return [(m, n) for m, vs in self._versions.items() for n, v in vs.items() if v.state is State.AVAILABLE]

    def failures(self) -> list[tuple[str, int, RequestError]]:
        with self._changed:
            return [(m, n, v.error) for m, vs in self._versions.items() for n, v in vs.items() if v.error]

    def _find(self, name: str, number: int | None) -> tuple[int, Version[Loaded]]:
        known = self._versions.get(name, {})
        numbers = [n for n, v in known.items() if v.state is State.AVAILABLE and number in (None, n)]
        if not numbers:
            what = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise RequestError(Code.NOT_FOUND, f"Servable not found for request: {what}")
        return max(numbers), known[max(numbers)]

    def _bring_up(self, name: str, number: int, path: Path) -> None:
        version: Version[Loaded] = Version()
        with self._changed:
            self._versions[name][number] = version
        try:
            servable = self._load(path)
        except Exception as error:  # a SavedModel can fail in any way, and none may stop the server
            code = error.code if isinstance(error, RequestError) else Code.UNKNOWN
            reason = " ".join(str(error).split()) or type(error).__name__
            with self._changed:
                version.state, version.failed = State.END, True
                version.error = RequestError(code, reason)
            staying = ", ".join(f"{m}/{n}" for m, n in self.available() if m == name)
            log.error("%s/%d not loaded: %s%s", name, number, reason, f" ({staying} goes on)" if staying else "")
            return
        with self._changed:
            version.servable, version.state = servable, State.AVAILABLE
        log.info("%s/%d loaded from %s", name, number, path)

    def _take_down(self, name: str, number: int) -> None:
        version = self._versions[name][number]
        with self._changed:
            version.state = State.UNLOADING
            self._changed.wait_for(lambda: version.users == 0)
            servable, version.servable = version.servable, None
            version.state = State.END
        assert servable is not None
        servable.close()
        log.info("%s/%d unloaded", name, number)
