"""From what is live back to the data: every link that a version names, and whether it is still what it was.

live version -> its files -> the gate's decision -> the run's config, code and seed -> its checkpoint -> the records

A link that contradicts the version is BROKEN. One that the version says too little of is unknown: an earlier release
recorded less, or somebody placed it by hand. A contradiction is looked for before what was not recorded.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import manifest, runs
from pipeline.errors import MISSING, UserError
from pipeline.release import live


@dataclass(frozen=True)
class Link:
    name: str
    text: str
    state: Literal["ok", "unknown", "BROKEN"] = "ok"


def audit(root: Path) -> list[Link]:
    """The chain of the stable version of `root`, all of its links even when one is broken. Raises UserError when there
    is no version to walk from."""
    state = live.current(root)
    if state is None:
        raise UserError(f"{root} holds no version yet.", MISSING)
    version = live.versions(root).get(state.stable, root / str(state.stable))
    chain = [_link("live", lambda: _live(root, state)), _link("version", lambda: _version(version))]
    try:
        facts = manifest.read(version)
    except UserError:
        return chain
    parents, home = facts.get("parents", {}), root.parent.parent
    run = _place(parents.get("run") or facts.get("run"), home)
    records = _place(parents.get("records_dir"), home)
    digests = parents.get("sha256", {})
    chain += [
        _link("decision", lambda: _decision(facts, parents)),
        _link("run", lambda: _run(run, facts, digests)),
        _link("export", lambda: _export(run, facts)),
        _link("checkpoint", lambda: _checkpoint(run, facts, digests)),
        _link("records", lambda: _records(records, parents, digests)),
        _link("code", lambda: _code(parents)),
    ]
    return chain


def lines(chain: list[Link]) -> Iterator[str]:
    for link in chain:
        yield f"{link.state:<8}{link.name:<11}{link.text}"


class _Broken(Exception):
    pass


class _Unrecorded(Exception):
    pass


def _link(name: str, walk: Callable[[], str]) -> Link:
    try:
        return Link(name, walk())
    except _Unrecorded as error:
        return Link(name, str(error), "unknown")
    except (_Broken, UserError) as error:
        return Link(name, str(error), "BROKEN")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Link(name, f"cannot be read ({type(error).__name__}: {error})", "BROKEN")


def _live(root: Path, state: live.Live) -> str:
    told = live.events(root)
    if not told:
        return f"version {state.stable} (no {live.JOURNAL}: it is the newest, or was placed before there was one)"
    if told[-1].after != state:
        raise _Broken(f"{live.NAME} says {state}, the journal's last event {told[-1].after}")
    event = next((e for e in reversed(told) if e.before is None or e.before.stable != e.after.stable), told[-1])
    return f"version {state.stable}, by {event.event} of {event.who} at {event.when}: {event.why}"


def _version(version: Path) -> str:
    return f"{version}: {len(manifest.verify(version)['files'])} files as they were pushed"


def _decision(facts: dict[str, Any], parents: dict[str, Any]) -> str:
    decision = parents.get("decision")
    if not decision:
        raise _Unrecorded("the version does not say how the gate decided")
    if decision.get("accepted") is not True:
        raise _Broken("the gate refused it")
    if decision.get("export", files := manifest.fingerprint(facts["files"])) != files:
        raise _Broken("the gate's decision is about other files")
    _recorded(decision, "export", "which files the gate decided about")
    beside = _recorded(decision, "champion", "beside which version the gate accepted it")
    return f"accepted, {len(decision['passed'])} checks held, beside {'no version' if beside is None else beside}"


def _run(run: Path | None, facts: dict[str, Any], digests: dict[str, str]) -> str:
    path = _there(run, "run") / "config.json"
    described = json.loads(path.read_bytes())
    seed = described["config"]["train"]["seed"]
    if facts.get("seed", seed) != seed:
        raise _Broken(f"{path} has seed {seed}, the export {facts.get('seed')}")
    _same(path, digests.get("config"))
    _recorded(facts, "seed", "its seed")
    return f"{run}: preset {described['preset']}, seed {seed}, config {digests['config'][:16]}"


def _export(run: Path | None, facts: dict[str, Any]) -> str:
    path = _there(run, "run") / "export"
    if manifest.verify(path)["files"] != facts["files"]:
        raise _Broken(f"{path} is another export than the version")
    return f"{path}: {manifest.fingerprint(facts['files'])}, the same files"


def _checkpoint(run: Path | None, facts: dict[str, Any], digests: dict[str, str]) -> str:
    best = str(_recorded(facts, "best_checkpoint", "its checkpoint"))
    path = _there(run, "run") / "checkpoints" / best
    step = manifest.verify(path).get("step")
    _same(path / manifest.NAME, digests.get("checkpoint"))
    return f"{path}: update {step}, the best"


def _records(records: Path | None, parents: dict[str, Any], digests: dict[str, str]) -> str:
    path = _there(records, "records")
    facts = manifest.verify(path)
    if path.name != parents.get("records", path.name):
        raise _Broken(f"{path} is not called {parents['records']}")
    if "key" in facts and manifest.fingerprint(facts["key"]) != path.name:
        raise _Broken(f"{path} was made from something else than its name says")
    _same(path / manifest.NAME, digests.get("records"))
    data = facts.get("key", {}).get("settings", {}).get("data", {})
    rows = sum(file.get("rows", 0) for file in facts["files"].values())
    return f"{path}: {rows} rows of {data.get('source', 'unknown')} {data.get('name', '')}".rstrip()


def _code(parents: dict[str, Any]) -> str:
    fingerprint = _recorded(parents, "fingerprint", "the code that made it")
    if fingerprint is None:
        raise _Unrecorded("the run did not note the code that made it")
    here = manifest.code_fingerprint(*runs.CODE)
    made = fingerprint["code"]
    same = "that of this checkout" if made == here else f"this checkout has {here}"
    return f"{made} ({same}), {', '.join(f'{name} {version}' for name, version in fingerprint['versions'].items())}"


def _place(recorded: str | None, home: Path) -> Path | None:
    """A path as it was noted, or where its last three parts lie beside exports/: trees are moved as a whole, and what
    was noted relative to the folder that the command ran in lies beside exports/, wherever the audit runs."""
    if recorded is None:
        return None
    noted = Path(recorded)
    return noted if noted.is_absolute() and noted.exists() else home.joinpath(*noted.parts[-3:])


def _recorded(facts: dict[str, Any], name: str, what: str) -> Any:
    if name not in facts:
        raise _Unrecorded(f"the version does not say {what}")
    return facts[name]


def _there(path: Path | None, what: str) -> Path:
    if path is None:
        raise _Unrecorded(f"the version does not name its {what}")
    if not path.exists():
        raise _Broken(f"{path} is not there")
    return path


def _same(path: Path, expected: str | None) -> None:
    if expected is None:
        raise _Unrecorded(f"{path} is there; the version does not say what was in it")
    if manifest.digest(path) != expected:
        raise _Broken(f"{path} has changed since the push (SHA-256 differs)")
