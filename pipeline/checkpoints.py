"""Checkpoints: every variable of model and optimizer, one committed directory a checkpoint, named by the update number.

Keras' seed generators (dropout) are variables of the model but not of its object graph, so `tf.train.Checkpoint(model)`
would lose them and a resumed run would differ; the variables are listed instead.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from models.analysis import Analysis
from models.spec import spec_of
from pipeline import manifest, runs
from pipeline.config import Config
from pipeline.errors import Corrupt, UserError

log = logging.getLogger(__name__)


def save(
    root: Path,
    step: int,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    facts: dict[str, Any],
    evaluated: list[np.ndarray] | None = None,
) -> Path:
    """Commits `root/<step>`; `facts` (JSON values) come back from `restore`. Does nothing where it is there already and
    whole; one that was damaged, and so passed over when the run went on, is written anew. `evaluated`: the values of
    the model's variables that were evaluated, where they are not those that training goes on from."""
    destination = Path(root) / f"{step:09d}"
    if destination.exists():
        try:
            manifest.verify(destination)
            return destination
        except UserError:
            _remove(destination)
    with manifest.committing(destination, exist_ok=True) as draft:
        parts = _parts(model, optimizer)
        if evaluated is not None:
            parts["evaluated"] = [tf.Variable(value) for value in evaluated]
        tf.train.Checkpoint(**parts).write(str(draft.path / "state"))
        draft.facts.update(facts, step=step, evaluated=evaluated is not None)
    return destination


def restore(root: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer | None) -> dict[str, Any] | None:
    """Restores the newest checkpoint that is whole and returns its facts; None if there never was one.

    A damaged checkpoint is passed over with a warning. When all are damaged it raises Corrupt: starting from scratch
    unasked would throw the run away.
    """
    steps = listed(root)
    for path in reversed(steps):
        try:
            return read(path, model, optimizer)
        except UserError as error:
            log.warning("checkpoint %s passed over: %s", path.name, error)
    if steps:
        raise Corrupt(
            f"{root}: none of the {len(steps)} checkpoints is whole; restore one from a copy, or pass --fresh."
        )
    return None


def read(path: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None) -> dict[str, Any]:
    """Verifies one checkpoint, restores it to train on from, or without `optimizer` to evaluate; returns its facts."""
    facts = manifest.verify(path)
    parts = _parts(model, optimizer)
    if facts.get("evaluated"):  # for whoever evaluates; passed over, but not left unread, by who trains on
        unread = [tf.Variable(tf.zeros_like(v)) for v in parts["model"]]
        parts = {"evaluated": parts["model"]} if optimizer is None else {**parts, "evaluated": unread}
    try:
        status = tf.train.Checkpoint(**parts).read(str(path / "state"))
        status.assert_consumed() if optimizer is not None else status.expect_partial().assert_existing_objects_matched()
    except (tf.errors.OpError, AssertionError, ValueError) as error:
        raise Corrupt(f"{path} does not fit the model ({str(error).splitlines()[0]}).") from None
    return facts


def best_model(run_dir: Path, config: Config, analysis: Analysis) -> keras.Model:
    """The model of a finished run with the weights of its best epoch, on one device, in float32."""
    outcome = runs.finished(run_dir)
    keras.config.set_dtype_policy("float32")
    model = spec_of(config.task).build(config.model, analysis)
    read(run_dir / "checkpoints" / outcome["best_checkpoint"], model)
    return model


def listed(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first."""
    return sorted(p for p in Path(root).glob("[0-9]*") if p.is_dir())


def prune(root: Path, keep: int, best: str | None) -> None:
    """Removes all but the `keep` newest checkpoints and the one named `best`."""
    for leftover in Path(root).glob(f"{_OLD}*"):
        shutil.rmtree(leftover)
    for path in listed(root)[:-keep]:
        if path.name != best:
            _remove(path)


_OLD = ".old-"


def _remove(path: Path) -> None:
    doomed = path.with_name(_OLD + path.name)
    shutil.rmtree(doomed, ignore_errors=True)  # from a process killed right here
    path.rename(doomed)  # first out of sight, so that no reader sees half a checkpoint
    shutil.rmtree(doomed)


def _parts(model: keras.Model, optimizer: keras.optimizers.Optimizer | None) -> dict[str, list[tf.Variable]]:
    parts = {"model": [v.value for v in model.variables]}
    if optimizer is not None:
        parts["optimizer"] = [v.value for v in optimizer.variables]
    return parts
