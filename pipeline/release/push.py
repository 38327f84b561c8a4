"""Places an accepted export under the serving root as the next integer version, in one rename.

A server that watches the root sees the version whole or not at all, and no version is ever changed or overwritten.
"""

import shutil
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.errors import UserError

TRIES = 100


def push(export_dir: Path, root: Path, parents: dict[str, Any]) -> Path:
    """Copies a committed export to `<root>/<highest version + 1>`; returns that directory.

    The new manifest keeps the facts of the export's and adds `parents` to its parents. An export whose files equal
    those of the live version is there already: that version is returned and none added. Of two processes that push
    at once the later one takes the next number. Raises Corrupt when the export is not what its manifest says, and
    UserError when the disk is full or read-only; then nothing is visible.
    """
    export = manifest.verify(export_dir)
    manifest.sweep(root)
    for _ in range(TRIES):
        newest = live(root)
        if newest and _same(export, newest):
            return newest
        destination = Path(root) / str(max(versions(root), default=0) + 1)
        try:
            with manifest.committing(destination) as draft:
                _copy(Path(export_dir), export, draft)
                draft.facts["parents"] = {**draft.facts.get("parents", {}), **parents}
            return destination
        except UserError:
            if not destination.exists():  # not a lost race for this number
                raise
    raise UserError(f"{root}: other processes took {TRIES} version numbers in a row; stop them and push again.")


def versions(root: Path) -> dict[int, Path]:
    """Whatever stands under `root` with a whole number for a name, committed or not, by number."""
    names = Path(root).iterdir() if Path(root).is_dir() else []
    return {int(path.name): path for path in names if path.name.isascii() and path.name.isdigit()}


def live(root: Path) -> Path | None:
    """The version that a server of this root answers with: the highest that is committed; None without any."""
    committed = {number: path for number, path in versions(root).items() if manifest.is_committed(path)}
    return committed[max(committed)] if committed else None


def _copy(source: Path, described: dict[str, Any], draft: manifest.Draft) -> None:
    for name, file in described["files"].items():
        (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, draft.path / name)
        if "rows" in file:
            draft.rows[name] = file["rows"]
    draft.facts.update({key: value for key, value in described.items() if key != "files"})


def _same(export: dict[str, Any], version: Path) -> bool:
    try:
        return manifest.verify(version)["files"] == export["files"]
    except UserError:  # a damaged or foreign version is not the export, whatever it once was
        return False
