"""A proof on the user's own settings that a run which is killed and started again ends as one that was left alone.

The run is trained twice in a temporary folder beside the records: once undisturbed, once killed with SIGKILL again and
again. Then every number that it logged and every variable of its checkpoints are compared, bit for bit.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import checkpoints, records, runs
from pipeline.advice.proofs import Resumption
from pipeline.advice.report import words
from pipeline.config import Config, to_json
from pipeline.errors import REFUSED, TERMINATED, USAGE, UserError
from pipeline.training import journal

SPEED = ("examples_per_second",)  # what may differ in a line of the journal
OUTCOME = ("best_checkpoint", "best_epoch", "best_score", "best_step", "epochs", "steps", "stopped")
POLL_SECONDS = 0.005
CHECKPOINT_SECONDS = 2.0  # so that kills go back into the midst of an epoch, too, and not to its begin alone


def verify(config: Resumption, preset: str) -> None:
    """Prints what was done and the verdict. Raises UserError(REFUSED) with the first difference, and UserError for
    settings of which nothing can be proved, records that are not there and runs that fail."""
    _check(config)
    found = records.find(config)
    seed = secrets.randbelow(2**32) if config.kill_seed is None else config.kill_seed
    with _scratch(config.run.root.resolve()) as scratch:
        sides = {name: _side(config, scratch / name) for name in ("undisturbed", "killed")}
        print(f"records {found}; both runs in {scratch}, removed afterwards", flush=True)
        reference, gaps = _undisturbed(sides["undisturbed"], preset)
        outcome = runs.finished(reference)
        plan = ", ".join(f"{name} {value}" for name, value in _plan(reference).items())
        print(f"undisturbed: {outcome['steps']} updates in {outcome['seconds']:.1f} s; {plan}", flush=True)
        at = _killed(sides["killed"], preset, _moments(reference, gaps, config.kills, random.Random(seed)))
        print(f"killed {len(at)} times, after update {', '.join(map(str, at))} (--kill-seed {seed})", flush=True)
        killed = runs.existing_run(sides["killed"])
        if (difference := first_difference(reference, killed)) is not None:
            raise UserError(
                f"verify-resume {preset}: the killed run is not the undisturbed one: {difference}.", REFUSED
            )
        lines, last = len(journal.read(killed)), checkpoints.listed(killed / "checkpoints")[-1]
        arrays = len(checkpoints.arrays(last))
        print(
            f"verdict: bit-equal. {lines} lines of {journal.NAME}, each step once, and {arrays} arrays of "
            f"checkpoint {last.name} are the same."
        )


def first_difference(one: Path, two: Path) -> str | None:
    """In what two finished runs first differ, speeds and wall times aside: plan, journal, outcome or checkpoints; None
    if in nothing."""
    return next(filter(None, _differences(one, two)), None)


def _differences(one: Path, two: Path) -> Iterator[str | None]:
    yield _mapping("plan.json", _plan(one), _plan(two))
    logs = [journal.read(run) for run in (one, two)]
    yield from (_once(log) for log in logs)
    for number, (a, b) in enumerate(zip(*logs, strict=False), start=1):
        a, b = ({key: value for key, value in line.items() if key not in SPEED} for line in (a, b))
        yield _mapping(f"{journal.NAME} line {number} (update {a['step']}, {a['split']})", a, b)
    if len(logs[0]) != len(logs[1]):
        yield f"{journal.NAME} has {len(logs[0])} lines and {len(logs[1])}"
    outcomes = [runs.finished(run) for run in (one, two)]
    yield _mapping("training.json", *({key: outcome.get(key) for key in OUTCOME} for outcome in outcomes))
    names = {outcomes[0]["best_checkpoint"], checkpoints.listed(one / "checkpoints")[-1].name}
    for name in sorted(names):
        yield _mapping(f"checkpoint {name}", *(checkpoints.arrays(run / "checkpoints" / name) for run in (one, two)))


def _plan(run: Path) -> dict[str, Any]:
    """How the run was computed, without what was measured."""
    chosen = json.loads((run / "plan.json").read_bytes())["chosen"]
    return {name: value for name, value in chosen.items() if isinstance(value, bool | int | str) and value != ""}


def _once(lines: list[dict[str, Any]]) -> str | None:
    """What is wrong when a split has a step twice, or training lines are no rising sequence up to the last step."""
    for split in journal.SPLITS:
        steps = [line["step"] for line in lines if line["split"] == split]
        for before, after in itertools.pairwise(steps):
            if after <= before:
                return f"{journal.NAME} has update {after} of {split} after update {before}"
    return None


def _mapping(what: str, one: dict[str, Any], two: dict[str, Any]) -> str | None:
    """The first entry in which two mappings differ; numbers must be the same bit for bit."""
    for name in sorted(one.keys() | two.keys()):
        if name not in one or name not in two:
            return f"{what}: {name} is in {'the first' if name in one else 'the second'} run only"
        a, b = one[name], two[name]
        if isinstance(a, np.ndarray):
            if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
                return f"{what}: {name} differs{_apart(a, b)}"
        elif repr(a) != repr(b):  # exact for numbers, and NaN is NaN
            return f"{what}: {name} is {a!r} and {b!r}"
    return None


def _apart(a: np.ndarray, b: np.ndarray) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f": {a.dtype}{[*a.shape]} and {b.dtype}{[*b.shape]}"
    if a.dtype.kind not in "fiu":
        return ""
    largest = np.nanmax(np.abs(np.subtract(a, b, dtype=np.float64)), initial=0.0)
    return f" in {int((a != b).sum())} of {a.size} numbers, by up to {largest:.3g}"


def _check(config: Resumption) -> None:
    if config.kills < 1:
        raise UserError(f"--kills {config.kills}: must be at least 1.", USAGE)
    if not config.train.deterministic:
        raise UserError(
            "--train.no-deterministic: two runs with these options differ even when nobody kills them; verify-resume "
            "needs --train.deterministic.",
            USAGE,
        )
    if config.train.strategy == "multi_worker":
        raise UserError("--train.strategy multi_worker: verify-resume kills and starts a run of one process.", USAGE)


@contextlib.contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A temporary folder under `root` that goes away after SIGTERM, too."""

    def stop(number: int, frame: object) -> None:
        raise UserError("verify-resume: stopped by SIGTERM; nothing is left behind.", TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with tempfile.TemporaryDirectory(prefix=".verify-resume-", dir=root) as scratch:
            yield Path(scratch)
    finally:
        signal.signal(signal.SIGTERM, before)


def _side(config: Resumption, root: Path) -> Resumption:
    """The same settings under a root of their own, on the same records and the same measured plan."""
    root.mkdir()
    (root / "records").symlink_to(config.run.root.resolve() / "records")
    run = dataclasses.replace(config.run, root=root, cache=config.cache_root.resolve(), fresh=False)
    often = min(config.train.checkpoint_seconds, CHECKPOINT_SECONDS)
    return dataclasses.replace(config, run=run, train=dataclasses.replace(config.train, checkpoint_seconds=often))


@contextlib.contextmanager
def _training(config: Config, preset: str) -> Iterator[subprocess.Popen]:
    """A process that trains; it ends with the block."""
    options = [*words(to_json(config)), "--run.root", str(config.run.root), "--run.cache", str(config.run.cache)]
    with open(config.run.root / "stderr", "w+b") as said:
        command = [sys.executable, "-m", "pipeline", "train", preset, *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _failed(config: Config, side: str, code: int) -> UserError:
    said = (config.run.root / "stderr").read_text(errors="replace").strip().splitlines()
    return UserError(f"verify-resume: the {side} run failed: {said[-1] if said else 'it said nothing'}", abs(code))


def _undisturbed(config: Resumption, preset: str) -> tuple[Path, dict[int, float]]:
    """The run, and for each update in its log (0: none yet) the seconds that passed until the next."""
    times: dict[int, float] = {}
    with _training(config, preset) as process:
        while process.poll() is None:
            times.setdefault(_last_update(_log(config)), time.monotonic())
            time.sleep(POLL_SECONDS)
        if process.returncode:
            raise _failed(config, "undisturbed", process.returncode)
    gaps = dict(zip(times, np.diff([*times.values()]).tolist(), strict=False))
    return runs.existing_run(config), gaps


def _killed(config: Resumption, preset: str, moments: list[tuple[int, float]]) -> list[int]:
    """Trains until done, killed at each moment (update in the log, seconds after it); the updates logged by then."""
    at: list[int] = []
    while True:
        with _training(config, preset) as process:
            if moments and _reaches(process, config, moments[0][0]):
                time.sleep(moments.pop(0)[1])
            elif not moments:
                process.wait()
            if (code := process.poll()) is None:
                process.kill()
                process.wait()
                at.append(max(0, _last_update(_log(config))))
            elif code:
                raise _failed(config, "killed", code)
            else:
                break
    if not at:
        raise UserError("verify-resume: the run ended before it could be killed: give it more --train.epochs.", USAGE)
    return at


def _moments(run: Path, gaps: dict[int, float], kills: int, source: random.Random) -> list[tuple[int, float]]:
    """One in each of `kills` equal parts of a run: an update of its log but the last, or 0, and a part of the time that
    passes until the next, so that kills meet updates, validation, writing and compiling."""
    logged = [0, *sorted({line["step"] for line in journal.read(run)})[:-1]]
    updates = [logged[int(len(logged) * (i + source.random()) / kills)] for i in range(kills)]
    return [(update, source.random() * gaps.get(update, 0.0)) for update in updates]


def _log(config: Config) -> Path:
    newest = runs.newest_run(config.runs_root)
    return (newest or config.runs_root) / journal.NAME


def _reaches(process: subprocess.Popen, config: Config, target: int) -> bool:
    """Waits until the process has logged update `target` (True) or is gone. A process that goes on begins by writing
    the log anew; what stood in it before does not count."""
    stale = _identity(_log(config))
    while process.poll() is None:
        if _identity(_log(config)) not in (None, stale) and _last_update(_log(config)) >= target:
            return True
        time.sleep(POLL_SECONDS)
    return False


def _identity(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _last_update(path: Path) -> int:
    """The step of the last whole line of a log, read from its end; 0 without any, -1 without a log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return -1
    return int(json.loads(lines[-1])["step"]) if lines and lines[-1].startswith(b"{") else 0
