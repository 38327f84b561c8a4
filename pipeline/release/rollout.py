"""What an operator does with versions that are there: try one as a canary, promote it, go back.

Each is one pointer move in LIVE.json, journaled first, and can be repeated: a command whose work is done already
changes nothing and says so. Each returns the line to print.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import manifest
from pipeline.errors import MISSING, Refused, UserError
from pipeline.release import live
from pipeline.release.live import Live


class Overtaken(Refused):
    """Somebody else decided about the canary meanwhile; `promoted`: it is stable now."""

    def __init__(self, root: Path, canary: int, promoted: bool):
        super().__init__(f"{root.name}: somebody else decided about the canary {canary} meanwhile; see its journal.")
        self.promoted = promoted


def canary(root: Path, version: int, percent: float, why: str = "") -> str:
    """`percent` of the requests go to `version`, which was pushed before. Raises UserError when it is not there or
    damaged, and Refused while another version is the canary."""
    with _changing(root) as state:
        if state.stable == version:
            return f"{root.name}: version {version} is stable already."
        if state.canary not in (None, version):
            raise Refused(f"{root.name}: version {state.canary} is a canary already; promote it or roll it back first.")
        _committed(root, version, thorough=True)
        after = Live(state.stable, state.previous, version, percent)
        if state != after:
            live.commit(root, "canary", state, after, why or "by hand")
        return f"{root.name}: version {version} gets {percent:g}% of the requests, version {state.stable} the others."


def promote(root: Path, why: str = "", judged: int | None = None) -> str:
    """The canary becomes stable, and what was stable stays loaded. Raises UserError without a canary, and Overtaken
    when it is not the one that was `judged`."""
    with _changing(root, judged) as state:
        if state.canary is None:
            if _last(root) == "promote":
                return f"{root.name}: version {state.stable} was promoted already."
            raise UserError(f"{root.name} has no canary: `minibatch canary {root.name}` begins one.", MISSING)
        _committed(root, state.canary)
        live.commit(root, "promote", state, Live(state.canary, state.stable), why or "by hand")
        return f"{root.name}: version {state.canary} is stable, version {state.stable} stays loaded."


def rollback(root: Path, version: int | None = None, why: str = "", judged: int | None = None) -> str:
    """Takes the canary away; without one the previous version is stable again, or `version` if it is given.

    Without `version` a second rollback in a row does nothing: what it would go back to was never said to be good.
    Raises UserError when there is no version to go back to, and Overtaken when the canary is not the one that was
    `judged`.
    """
    with _changing(root, judged) as state:
        if version is None and state.canary is not None:
            after = Live(state.stable, state.previous)
            live.commit(root, "rollback", state, after, why or "by hand")
            return f"{root.name}: the canary {state.canary} is off, version {state.stable} answers everything."
        if version is None and _last(root) == "rollback":
            return f"{root.name}: rolled back to version {state.stable} already; --version N goes further back."
        if (target := state.previous if version is None else version) is None:
            raise UserError(f"{root.name}: no version before {state.stable} is known; give --version.", MISSING)
        after = Live(target)
        if state != after:
            _committed(root, target)
            live.commit(root, "rollback", state, after, why or "by hand")
        return f"{root.name}: version {target} is stable."


@contextmanager
def _changing(root: Path, judged: int | None = None) -> Iterator[Live]:
    """Inside the lock: what is live; its canary is the one that was `judged`, if one was."""
    nothing = UserError(f"{root} holds no version yet: `minibatch push` places the first.", MISSING)
    if not root.is_dir():
        raise nothing
    with live.locked(root):
        state = live.current(root)
        if state is None:
            raise nothing
        if judged is not None:
            still(root, state, judged)
        yield state


def still(root: Path, state: Live | None, canary: int) -> None:
    """Raises Overtaken when `canary` is not on trial any more."""
    if state is None or state.canary != canary:
        raise Overtaken(root, canary, promoted=state is not None and state.stable == canary)


def _last(root: Path) -> str:
    return next((event.event for event in reversed(live.events(root))), "")


def _committed(root: Path, version: int, thorough: bool = False) -> None:
    path = live.versions(root).get(version, root / str(version))
    manifest.verify(path) if thorough else manifest.read(path)
