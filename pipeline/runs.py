"""A run's directory: runs/<name>/<number>, a number for each fresh start; the newest is the one commands mean."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.config import Config, difference, to_json
from pipeline.errors import CHANGED, MISSING, Corrupt, UserError, redacted

# What may differ between two calls of the same run: where data lies, which runner read it, what is kept and where.
_FREE = {
    "data": ("path", "download", "runner", "runner_options"),
    "train": ("tensorboard", "keep", "memory_limit", "checkpoint_seconds"),
}
CODE = (
    "models",
    "custom_optimizers",
    "pipeline/training",
    "pipeline/records.py",
    "pipeline/release/answers.py",  # what it asks is measured, and the metrics choose the best checkpoint
    "pipeline/release/evaluate.py",
    "pipeline/release/metrics.py",
)
"""The code that a run's weights come from."""


def describe(config: Config, preset: str, records_dir: Path) -> dict[str, Any]:
    """config.json: everything that a run's weights depend on, and where its rows are."""
    import tensorflow as tf  # its distribution is called tensorflow-tpu on some hosts, so the metadata may not know it

    return {
        "preset": preset,
        "config": redacted(to_json(config)),
        "records": str(records_dir),
        "fingerprint": {
            "records": Path(records_dir).name,
            "code": manifest.code_fingerprint(*CODE),
            "versions": {"tensorflow": tf.__version__, "keras": version("keras"), "numpy": version("numpy")},
        },
    }


def open_run(config: Config, description: dict[str, Any]) -> Path:
    """The directory to train in: the newest if the settings are its own, a new one if there is none or `fresh` is set.

    Raises UserError(CHANGED) with one line of differences when the newest run was made with other settings.
    """
    root = config.runs_root
    root.mkdir(parents=True, exist_ok=True)
    newest = newest_run(root)
    if newest is not None and not config.run.fresh:
        old = read(newest / "config.json")
        if different := changes(old, description):
            raise UserError(
                f"{newest} was made with other settings ({'; '.join(different)}): pass --fresh to start a new "
                "run beside it, or another --run.name.",
                CHANGED,
            )
        return newest
    directory = root / f"{1 + max((int(p.name) for p in _numbered(root)), default=0):04d}"
    manifest.sweep(root)
    draft = manifest.draft_name(root)
    try:
        draft.mkdir()
        manifest.write_file(draft / "config.json", json.dumps(description, indent=1))
        draft.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return open_run(config, description)  # another process took this number meanwhile
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return directory


def same_settings(config: Config, run_dir: Path) -> None:
    """Raises UserError(CHANGED) when `config` is not the one that the run was trained with: what is exported, evaluated
    and pushed must be what was trained."""
    old = read(run_dir / "config.json")
    different = difference(_settings(old["config"]), _settings(redacted(to_json(config))))
    if different:
        raise UserError(
            f"{run_dir} was made with other settings ({'; '.join(different)}): repeat its options.", CHANGED
        )


def newest_run(root: Path) -> Path | None:
    return max((p for p in _numbered(root) if (p / "config.json").is_file()), default=None)


def existing_run(config: Config) -> Path:
    """The newest run of this name. Raises UserError(MISSING) when there is none."""
    newest = newest_run(config.runs_root)
    if newest is None:
        raise UserError(
            f"{config.runs_root} holds no run yet: run `minibatch train` with the same options first.", MISSING
        )
    return newest


def records_of(described: dict[str, Any], root: Path) -> Path:
    """The records of a run under `root`: beside it, or else where they were noted, which may be relative to the folder
    that the command ran in."""
    noted = Path(described["records"])
    beside = Path(root, "records", *noted.parts[-2:])
    return beside if beside.is_dir() else noted


def exported(run_dir: Path) -> Path:
    """The run's export. Raises UserError(MISSING) when there is none."""
    if not manifest.is_committed(run_dir / "export"):
        raise UserError(f"{run_dir} has no export yet: run `minibatch export` with the same options first.", MISSING)
    return run_dir / "export"


def result(run_dir: Path) -> dict[str, Any] | None:
    """training.json of a finished run, None while it is unfinished."""
    path = Path(run_dir) / "training.json"
    return read(path) if path.is_file() else None


def finished(run_dir: Path) -> dict[str, Any]:
    """training.json. Raises UserError(CHANGED) while the run is unfinished."""
    outcome = result(run_dir)
    if outcome is None:
        raise UserError(f"{run_dir} is unfinished: `minibatch train` with the same options finishes it.", CHANGED)
    return outcome


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Only one process trains in a run; the lock goes with the process, however it ends."""
    with open(Path(run_dir) / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{run_dir} is being trained by process {file.read().strip() or 'unknown'}; wait for it, or "
                "use another --run.name.",
                CHANGED,
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _numbered(root: Path) -> list[Path]:
    return list(Path(root).glob("[0-9][0-9][0-9][0-9]"))


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two runs, as `describe` describes them, of all that their weights depend on."""
    return difference(_binding(old), _binding(new))


def _binding(description: dict[str, Any]) -> dict[str, Any]:
    return {**_settings(description["config"]), **description["fingerprint"]}


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    kept = {section: dict(config[section]) for section in ("data", "model", "optimizer", "train")}
    for section, names in _FREE.items():
        for name in names:
            kept[section].pop(name, None)
    return kept


def read(path: Path) -> dict[str, Any]:
    """A JSON file of a run. Raises Corrupt when it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise Corrupt(f"{path} is not readable ({error}); restore it from a copy, or pass --fresh.") from None
