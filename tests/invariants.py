"""What must hold of a run directory whatever happened to the process that trained in it: read off the disk alone."""

import json
from collections import defaultdict
from pathlib import Path

from pipeline import checkpoints, manifest
from pipeline.errors import UserError


def broken(run_dir: Path, committed: bool) -> list[str]:
    """The invariants that do not hold, in words; to be asked when no process trains there, and after the sweep that
    every start begins with. `committed`: whether a checkpoint was ever committed.

    Directories under a visible name are whole; a visible name was committed; a checkpoint names a best one that is
    there; update numbers in the log only grow; after the first checkpoint there is one to go on from; no drafts.
    """
    said = [f"{path.relative_to(run_dir)} was left" for path in run_dir.rglob(".tmp-*")]
    root, whole = run_dir / "checkpoints", []
    for path in root.iterdir() if root.is_dir() else []:
        if path.name.startswith("."):
            continue
        try:
            best = manifest.verify(path).get("standing", {}).get("best_checkpoint")
            whole.append(path.name)
            if best and not (root / best / manifest.NAME).is_file():
                said.append(f"{path.name} calls {best} the best, which is not there")
        except UserError as error:
            said.append(str(error))
    if [path.name for path in checkpoints.listed(root)] != sorted(whole):
        said.append(f"{sorted(whole)} are whole, but others are listed")
    if committed and not whole:
        said.append("no checkpoint to go on from")
    return said + _unordered(run_dir / "metrics.jsonl")


def _unordered(log: Path) -> list[str]:
    steps = defaultdict(list)
    for line in log.read_text().splitlines() if log.is_file() else []:
        steps[json.loads(line)["split"]].append(json.loads(line)["step"])
    return [f"{split}: updates {found} in the log" for split, found in steps.items() if found != sorted(set(found))]
