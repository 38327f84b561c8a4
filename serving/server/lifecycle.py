"""Which versions are in memory, and the steps from there to what should be.

The steps are those of TF Serving's availability-preserving policy: a new version loads while the old one serves, and
the last loaded one is unloaded only when an aspired one is available, or none is aspired at all. Two things differ,
both to the good of requests, and neither shows in an answer:
- A load, and the wait before it is tried again, holds up no other model. (TF Serving without --num_load_threads works
  on one thing at a time: five minutes of attempts at a broken model stop every other update.)
- A version that is wanted again while it is still loaded stays. (There it is unloaded and loaded again.)
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

from serving.server import metrics
from serving.server.errors import Code, RequestError, invalid
from serving.server.live import Live

log = logging.getLogger("serving")


class State(Enum):
    """TF Serving's names. A version waits in LOADING for its next attempt."""

    START = "START"
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


class Closable(Protocol):
    def close(self) -> None: ...


Loaded = TypeVar("Loaded", bound=Closable)  # Servable, or a shell in tests: nothing here looks inside


@dataclass
class Version(Generic[Loaded]):
    """`error` is why it did not load, kept for the status page; `users` counts the requests that hold `servable`."""

    path: Path
    aspired: bool = True
    state: State = State.START
    servable: Loaded | None = None
    error: RequestError | None = None
    failed: bool = False  # not to be tried again until its folder, or the wish for it, went away
    users: int = 0
    busy: bool = False  # a thread loads or closes it
    attempts: int = 0
    due: float = 0.0  # not loaded before


class Action(NamedTuple):
    verb: Literal["close", "unload", "load"]  # unload: no new requests; close: the last one is done
    version: int


def next_action(versions: Mapping[int, Version], now: float) -> Action | None:
    """The one next step of a model; None when there is nothing to do, or nothing yet."""
    drained = [n for n, v in versions.items() if v.state is State.UNLOADING and not v.users and not v.busy]
    if drained:
        return Action("close", min(drained))
    aspired = [v for v in versions.values() if v.aspired]
    surplus = [n for n, v in versions.items() if v.state is State.AVAILABLE and not v.aspired]
    if surplus and (not aspired or any(v.state is State.AVAILABLE for v in aspired) or len(surplus) > 1):
        return Action("unload", min(surplus))
    waiting = [n for n, v in versions.items() if v.aspired and v.state in (State.START, State.LOADING)]
    ready = [n for n in waiting if not versions[n].busy and versions[n].due <= now]
    return Action("load", max(ready)) if ready else None


class Lease(Generic[Loaded]):
    """A version that a request holds: it is not closed before `with` ends."""

    __slots__ = ("_models", "_version", "number")

    def __init__(self, models: "Models[Loaded]", number: int, version: Version[Loaded]):
        self._models, self.number, self._version = models, number, version

    def __enter__(self) -> tuple[int, Loaded]:
        assert self._version.servable is not None
        return self.number, self._version.servable

    def __exit__(self, *_: object) -> None:
        self._models.release(self._version)


class Models(Generic[Loaded]):
    """The models in memory; any thread may call.

    `load` makes the servable of a version folder, and raises anything when it cannot; `spawn` runs a function in
    another thread. A load that fails is tried `retries` times more, `retry_seconds` apart. At most `loads` at a time.
    """

    def __init__(
        self,
        load: Callable[[Path], Loaded],
        spawn: Callable[[Callable[[], None]], object],
        retries: int = 5,
        retry_seconds: float = 60,
        loads: int = 1,
        clock: Callable[[], float] = time.monotonic,
        after_unload: Callable[[], None] = lambda: None,
    ):
        self.stirred = threading.Event()  # something changed that may make an action possible
        self.loads = loads
        self._load, self._spawn, self._clock, self._after_unload = load, spawn, clock, after_unload
        self._retries, self._retry_seconds = retries, retry_seconds
        self._lock = threading.Lock()
        self._versions: dict[str, dict[int, Version[Loaded]]] = {}
        self._available: dict[str, dict[int, Version[Loaded]]] = {}  # the part that requests look at
        self._labels: Mapping[str, Mapping[str, int]] = {}
        self._live: dict[str, Live] = {}

    # What should be

    def aspire(self, name: str, wanted: Mapping[int, Path], on_disk: Iterable[int] = ()) -> None:
        """Sets which versions a model should offer. A failed one gets a new chance when it, or its folder, was away."""
        with self._lock:
            versions = self._versions.setdefault(name, {})
            for number, version in list(versions.items()):
                version.failed = version.failed and (number in wanted or number in on_disk)
                if number not in wanted and version.aspired:
                    self._give_up(versions, number)
            for number, path in wanted.items():
                known = versions.get(number)
                if known is None or (known.state is State.END and not known.failed):
                    versions[number] = Version(path)
                else:
                    known.aspired = True
        self.stirred.set()

    def route(self, name: str, live: Live | None) -> None:
        """Requests without a version follow `live`; None: the highest that is available."""
        if live is None:
            self._live.pop(name, None)
        else:
            self._live[name] = live

    def relabel(self, labels: Mapping[str, Mapping[str, int]], allow_unavailable: bool) -> None:
        """Replaces the labels of all models. Raises RequestError for a version not loaded, and changes nothing then.

        With `allow_unavailable` only the move of a label in use needs a loaded target.
        """
        with self._lock:
            for name, assigned in labels.items():
                for label, number in assigned.items():
                    moved = self._labels.get(name, {}).get(label, number) != number
                    if number not in self._available.get(name, {}) and (moved or not allow_unavailable):
                        raise RequestError(
                            Code.FAILED_PRECONDITION,
                            f"Request to assign label to version {number} of model {name}, "
                            "which is not currently available for inference",
                        )
            self._labels = labels

    # What is

    def lease(self, name: str, wanted: int | str | None = None, request_id: str | None = None) -> Lease[Loaded]:
        """The version that answers: by number, by label, or the one that a request without either gets.

        Raises RequestError: NOT_FOUND when it is not loaded, INVALID_ARGUMENT for an unknown label.
        """
        with self._lock:
            available = self._available.get(name, {})
            number = self._chosen(name, wanted, request_id, available)
            version = available.get(number) if number is not None else None
            if version is None or number is None:
                what = f"Latest({name})" if wanted is None else f"Specific({name}, {number})"
                raise RequestError(Code.NOT_FOUND, f"Servable not found for request: {what}")
            version.users += 1
        return Lease(self, number, version)

    def release(self, version: Version[Loaded]) -> None:
        with self._lock:
            version.users -= 1
            last = not version.users and version.state is State.UNLOADING
        if last:
            self.stirred.set()

    def status(self, name: str, number: int | None = None) -> list[tuple[int, State, RequestError | None]]:
        """Number, state and load error of each version, newest first. Raises RequestError(NOT_FOUND)."""
        with self._lock:
            versions = sorted(self._versions.get(name, {}).items(), reverse=True)
            known = [
                (n, v.state, v.error if v.state is State.END else None) for n, v in versions if number in (None, n)
            ]
        if not known:
            what = "any versions" if number is None else f"version {number}"
            raise RequestError(Code.NOT_FOUND, f"Could not find {what} of model {name}")
        return known

    def names(self) -> list[str]:
        """Every model that a version of was ever seen."""
        with self._lock:
            return sorted(name for name, versions in self._versions.items() if versions)

    def knows(self, name: str) -> bool:
        return name in self._versions

    def available(self) -> list[tuple[str, int]]:
        """Name and number of every version that answers."""
        with self._lock:
            return [(name, number) for name, versions in self._available.items() for number in versions]

    def outcome(self, name: str) -> bool | None:
        """True: a version is available, and the stable one, if LIVE.json names one, or that has failed: a canary alone
        would get every request. False: all that should be have failed; None: it will show."""
        with self._lock:
            live = self._live.get(name)
            stable = self._versions.get(name, {}).get(live.stable) if live else None
            waits = stable is not None and stable.aspired and not stable.failed and stable.state is not State.AVAILABLE
            if self._available.get(name) and not waits:
                return True
            aspired = [v for v in self._versions.get(name, {}).values() if v.aspired]
            return False if aspired and all(v.failed for v in aspired) else None

    def failures(self, names: Iterable[str]) -> list[tuple[str, int, RequestError]]:
        """The aspired versions that did not load."""
        with self._lock:
            return [
                (name, number, version.error)
                for name in names
                for number, version in sorted(self._versions.get(name, {}).items())
                if version.failed and version.aspired and version.error
            ]

    def failed(self, name: str) -> set[int]:
        with self._lock:
            return {number for number, version in self._versions.get(name, {}).items() if version.failed}

    # From one to the other

    def act(self) -> bool:
        """Takes one step of one model, unloads before loads; False when there is none to take now."""
        with self._lock:
            loading = sum(v.busy for vs in self._versions.values() for v in vs.values() if v.state is State.LOADING)
            now = self._clock()
            actions = [(action, name) for name, vs in self._versions.items() if (action := next_action(vs, now))]
            if loading >= self.loads:
                actions = [(action, name) for action, name in actions if action.verb != "load"]
            if not actions:
                return False
            order = ("close", "unload", "load")
            (verb, number), name = min(actions, key=lambda choice: order.index(choice[0].verb))
            version = self._versions[name][number]
            if verb == "unload":
                version.state = State.UNLOADING
                del self._available[name][number]
                return True
            version.busy = True
            if verb == "load":
                version.state = State.LOADING
        step = self._bring_up if verb == "load" else self._close
        self._spawn(lambda: step(name, number, version))
        return True

    def seconds_to_retry(self) -> float | None:
        """Until the next attempt at a load that failed; None without one."""
        with self._lock:
            now = self._clock()
            waiting = [v for vs in self._versions.values() for v in vs.values() if v.state is State.LOADING]
            return min((v.due - now for v in waiting if v.due > now), default=None)

    def _chosen(
        self, name: str, wanted: int | str | None, request_id: str | None, available: Mapping[int, object]
    ) -> int | None:
        if isinstance(wanted, int):
            return wanted
        live = self._live.get(name)
        if wanted is None:
            for number in live.preferred(request_id) if live else ():
                if number in available:
                    return number
            return max(available, default=None)
        labels = self._labels.get(name, {}) if wanted in self._labels.get(name, {}) else live.labels if live else {}
        if wanted not in labels:
            raise invalid(f"Unrecognized servable version label: {wanted}")
        return labels[wanted]

    def _give_up(self, versions: dict[int, Version[Loaded]], number: int) -> None:
        """A version is no longer aspired: one that waits for its first or next attempt will not get it."""
        version = versions[number]
        version.aspired = False
        if version.state is State.START:
            del versions[number]
        elif version.state is State.LOADING and not version.busy:
            version.state, version.failed = State.END, False

    def _bring_up(self, name: str, number: int, version: Version[Loaded]) -> None:
        try:
            servable = self._load(version.path)
        except Exception as error:  # a SavedModel can fail in any way, and none may stop the server
            metrics.load_failed(name, str(version.path))
            code = error.code if isinstance(error, RequestError) else Code.UNKNOWN
            reason = " ".join(str(error).split()) or type(error).__name__
            self._not_loaded(name, number, version, RequestError(code, reason))
        else:
            with self._lock:
                unwanted = not version.aspired
                version.busy = False
                if not unwanted:
                    version.servable, version.state, version.due, version.error = servable, State.AVAILABLE, 0.0, None
                    self._available.setdefault(name, {})[number] = version
            if unwanted:
                servable.close()
                del servable
                self._after_unload()
                with self._lock:
                    version.state = State.END
                    version.error = RequestError(Code.CANCELLED, "Loading of servable cancelled")
            log.info("%s/%d %s", name, number, "not kept" if unwanted else f"loaded from {version.path}")
        self.stirred.set()

    def _not_loaded(self, name: str, number: int, version: Version[Loaded], error: RequestError) -> None:
        with self._lock:
            version.attempts += 1
            staying = ", ".join(f"{name}/{n}" for n in sorted(self._available.get(name, {})))
        notes = [f"attempt {version.attempts} of {self._retries + 1}"] if self._retries else []
        notes += [f"{staying} goes on"] if staying else []
        log.error("%s/%d not loaded: %s%s", name, number, error, f" ({'; '.join(notes)})" if notes else "")
        with self._lock:  # after the line, since a server whose only model has failed ends at once
            version.busy, version.error = False, error
            if version.aspired and version.attempts <= self._retries:
                version.due = self._clock() + max(0.0, self._retry_seconds)
            else:
                version.state, version.failed = State.END, version.aspired

    def _close(self, name: str, number: int, version: Version[Loaded]) -> None:
        servable, version.servable = version.servable, None
        assert servable is not None
        try:
            servable.close()
        except Exception:
            log.exception("%s/%d could not be closed", name, number)
        del servable
        self._after_unload()
        metrics.forget(name, number)
        with self._lock:
            version.busy, version.state = False, State.END
            if version.aspired:  # it was wanted again meanwhile
                self._versions[name][number] = Version(version.path)
        log.info("%s/%d unloaded", name, number)
        self.stirred.set()
