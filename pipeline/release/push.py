"""Places an accepted export under the serving root as the next integer version, in one rename, and makes it live.

A server that watches the root sees the version whole or not at all, and no version is ever changed or overwritten.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline import manifest, runs
from pipeline.errors import MISSING, Refused, UserError
from pipeline.release import live
from pipeline.release.live import Live, newest, versions

TRIES = 100


def publish(run_dir: Path, records_dir: Path, root: Path, percent: float = 100, key_file: Path | None = None) -> Path:
    """The run's export, which the gate accepted, as the stable version of `root`, or below 100 percent as a canary
    beside it; returns the version's directory and notes it in pushed.json.

    What is stable, or the canary, already stays as it is. The first version of a root is always stable. Raises
    Refused when the gate did not accept this export beside the version that is stable now, when a canary is under
    way, or when this very export was rolled back; UserError and Corrupt as `push` and `live.locked` do.
    """
    run_dir, export = Path(run_dir), Path(run_dir) / "export"
    decision = accepted(run_dir)
    with live.locked(root):
        version = _release(export, root, lineage(run_dir, records_dir, decision), percent, _key(key_file))
    noted = json.dumps({"version": int(version.name), "path": str(version)})
    manifest.write_file(run_dir / "pushed.json", noted)
    return version


def accepted(run_dir: Path) -> dict[str, Any]:
    """The gate's decision about the run's export. Raises UserError when there is none yet, or no export, and Refused
    when it was a refusal or about another export."""
    path = run_dir / "decision.json"
    if not path.is_file():
        raise UserError(f"{run_dir} was not judged yet: run `minibatch gate` with the same options first.", MISSING)
    decision = json.loads(path.read_bytes())
    if not decision["accepted"]:
        raise Refused(f"{run_dir} was refused by the gate (see {path}); nothing is pushed.")
    if decision.get("export") != manifest.files_fingerprint(runs.exported(run_dir)):
        raise Refused(f"{path} is not about the export that is there now: run `minibatch gate` again.")
    return decision


def push(export_dir: Path, root: Path, parents: dict[str, Any], key: bytes | None = None) -> Path:
    """Copies a committed export to `<root>/<highest version + 1>`; returns that directory.

    The new manifest keeps the facts of the export's and adds `parents` to its parents. An export whose files equal
    those of the newest version is there already: that version is returned and none added. Of two processes that push
    at once the later one takes the next number. Raises Corrupt when the export is not what its manifest says, and
    UserError when the disk is full or read-only; then nothing is visible.
    """
    export = manifest.verify(export_dir)
    manifest.sweep(root)
    for _ in range(TRIES):
        last = newest(root)
        if last is not None and _same(export, versions(root)[last]):
            return versions(root)[last]
        destination = Path(root) / str(max(versions(root), default=0) + 1)
        try:
            with manifest.committing(destination) as draft:
                _copy(Path(export_dir), export, draft)
                draft.key = key
                draft.facts["parents"] = {**draft.facts.get("parents", {}), **parents}
            return destination
        except UserError:
            if not destination.exists():  # not a lost race for this number
                raise
    raise UserError(f"{root}: other processes took {TRIES} version numbers in a row; stop them and push again.")


def _key(file: Path | None) -> bytes | None:
    try:
        key = file.read_bytes().strip() if file else None
    except OSError as error:
        raise UserError(f"--push.key-file {file}: {error.strerror}.", MISSING) from None
    if key == b"":
        raise UserError(f"--push.key-file {file} is empty.", MISSING)
    return key


def lineage(run_dir: Path, records_dir: Path, decision: dict[str, Any]) -> dict[str, Any]:
    """Where a version comes from, for its manifest: paths, the decision as it stood, and the SHA-256 of what the audit
    will look for there. Raises UserError for a link that is missing already."""
    described = json.loads((run_dir / "config.json").read_bytes())
    checkpoint = run_dir / "checkpoints" / str(manifest.read(run_dir / "export").get("best_checkpoint"))
    links = {"config": run_dir / "config.json"}
    links |= {"checkpoint": checkpoint / manifest.NAME, "records": records_dir / manifest.NAME}
    return {
        "run": str(run_dir),
        "records": Path(records_dir).name,
        "records_dir": str(records_dir),
        "fingerprint": described.get("fingerprint"),
        "decision": decision,
        "sha256": {name: manifest.digest(path) for name, path in links.items() if path.is_file()},
    }


def _release(export: Path, root: Path, parents: dict[str, Any], percent: float, key: bytes | None) -> Path:
    """Inside the lock: places the version and makes it live."""
    files, state = manifest.verify(export), live.current(root)
    if state is not None:
        for number in (state.stable, state.canary):
            if number is not None and _same(files, versions(root).get(number)):
                live.adopt(root)
                _journal_first(root, state, parents)
                return versions(root)[number]
        if state.canary is not None:
            raise Refused(
                f"{root}: version {state.canary} is a canary; `minibatch promote {root.name}` or `minibatch rollback "
                f"{root.name}` first."
            )
        for number, undone in live.rolled_back(root).items():
            if _same(files, versions(root).get(number)):
                raise Refused(
                    f"{root / str(number)} is this export, and it was rolled back ({undone.when}, {undone.who}: "
                    f"{undone.why}); `minibatch canary {root.name} --version {number}` tries it again."
                )
    judged, stable = parents["decision"]["champion"], state.stable if state else None
    if judged != stable:
        raise Refused(
            f"{root}: version {stable} went live after the export was judged against "
            f"{'no version' if judged is None else f'version {judged}'}: run `minibatch gate` again, then push."
        )
    champion = live.champion(root)
    if champion and parents["decision"].get("champion_export") != manifest.files_fingerprint(champion):
        raise Refused(
            f"{root}: the export was judged against version {judged} of another model: run `minibatch gate` with the "
            "same options, then push."
        )
    live.adopt(root)
    version = push(export, root, parents, key)
    after = Live(int(version.name), stable)
    if state is not None and percent < 100:
        after = Live(state.stable, state.previous, int(version.name), percent)
    live.commit(root, "push", state, after, f"accepted by the gate: {parents['run']}")
    return version


def _journal_first(root: Path, state: Live, parents: dict[str, Any]) -> None:
    """The first version is served as soon as it is placed; a push that was killed there has yet to say so."""
    if not live.events(root):
        live.commit(root, "push", None, state, f"accepted by the gate: {parents['run']}")


def _copy(source: Path, described: dict[str, Any], draft: manifest.Draft) -> None:
    for name, file in described["files"].items():
        (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, draft.path / name)
        if "rows" in file:
            draft.rows[name] = file["rows"]
    draft.facts.update({key: value for key, value in described.items() if key != "files"})


def _same(export: dict[str, Any], version: Path | None) -> bool:
    try:
        return version is not None and manifest.verify(version)["files"] == export["files"]
    except UserError:  # a damaged or foreign version is not the export, whatever it once was
        return False
