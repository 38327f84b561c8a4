"""Checkpoints: every variable of model and optimizer, one committed directory a checkpoint, named by the update number.

The file is TensorFlow's tensor bundle with one name a variable, "model/0003/dense/kernel", and no object graph: Keras'
seed generators (dropout) are variables of the model but not of its graph, so `tf.train.Checkpoint(model)` would lose
them and a resumed run would differ. `tf.train.load_checkpoint(directory / "state")` reads it without this package.
"""

import contextlib
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from models.analysis import Analysis
from models.spec import spec_of
from pipeline import manifest, runs
from pipeline.config import Config
from pipeline.errors import CANNOT_WRITE, Corrupt, UserError, storage_failure

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Checkpoints in a row that may fail before the run stops."""


def snapshot(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, evaluated: list[np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Copies in host memory of every variable, by name; of a distributed variable the copy of the first local replica.

    `evaluated`: the values of the model's variables that were evaluated, where they are not those that training goes
    on from; they are taken as they are, not copied.
    """
    named = {**_named("model", model.variables), **_named("optimizer", optimizer.variables)}
    arrays = dict(zip(named, values(named.values()), strict=True))
    if evaluated is not None:
        arrays.update(zip(_named("evaluated", model.variables), map(np.asarray, evaluated), strict=True))
    return arrays


def values(variables: Iterable[keras.Variable]) -> list[np.ndarray]:
    """Their values in host memory; of a distributed variable those of its first local replica."""
    return [np.asarray(getattr(v.value, "values", [v.value])[0].numpy()) for v in variables]


def non_finite(arrays: dict[str, np.ndarray]) -> str | None:
    """The name of the first array of the model that holds NaN or infinity."""
    weights = ((name, array) for name, array in arrays.items() if not name.startswith("optimizer/"))
    return next((n for n, a in weights if a.dtype.kind not in "iub" and not np.isfinite(a).all()), None)


def write(root: Path, step: int, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Path:
    """Commits `root/<step>`; `facts` (JSON values) come back from `restore`. Does nothing where it is there already and
    whole; one that was damaged, and so passed over when the run went on, is written anew."""
    destination = Path(root) / f"{step:09d}"
    if destination.exists():
        try:
            manifest.verify(destination)
            return destination
        except UserError:
            manifest.remove(destination)
    with manifest.committing(destination) as draft:
        with tf.device("/cpu:0"):
            tf.raw_ops.SaveV2(
                prefix=str(draft.path / "state"),
                tensor_names=list(arrays),
                shape_and_slices=[""] * len(arrays),
                tensors=list(arrays.values()),
            )
        draft.facts.update(facts, step=step)
    return destination


def restore(
    root: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer | None, damaged: set[str] | None = None
) -> dict[str, Any] | None:
    """Restores the newest checkpoint that is whole and returns its facts; None if there never was one.

    A damaged checkpoint is passed over with a warning, and its name added to `damaged`. When all are damaged it raises
    Corrupt: starting from scratch unasked would throw the run away.
    """
    errors = []
    for path in reversed(listed(root)):
        try:
            return read(path, model, optimizer)
        except UserError as error:
            log.warning("checkpoint %s passed over: %s", path.name, error)
            errors.append(error)
            if damaged is not None:
                damaged.add(path.name)
    if errors:
        raise Corrupt(
            f"{root}: none of the {len(errors)} checkpoints is whole; restore one from a copy, or pass --fresh. The "
            f"newest: {errors[0]}"
        )
    return None


def read(path: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None) -> dict[str, Any]:
    """Verifies one checkpoint, restores it to train on from, or without `optimizer` to evaluate; returns its facts.

    Raises Corrupt, and leaves all variables as they were, when the checkpoint is damaged or of another model or
    optimizer.
    """
    facts = manifest.verify(path)
    try:
        reader = tf.train.load_checkpoint(str(path / "state"))
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        if optimizer is not None:
            wanted = {**_named("model", model.variables), **_named("optimizer", optimizer.variables)}
        else:
            part = "evaluated" if any(name.startswith("evaluated/") for name in shapes) else "model"
            wanted = _named(part, model.variables)
        parts = {_key(name).split("/")[0] for name in wanted}
        found = {_key(n): f"{n} {types[n].name}{shapes[n]}" for n in shapes if n.split("/")[0] in parts}
        expected = {_key(n): f"{n} {v.dtype}{[*v.shape]}" for n, v in wanted.items()}
        for key in sorted(found.keys() | expected.keys()):
            if found.get(key) != expected.get(key):
                raise Corrupt(
                    f"{path} does not fit the model: expected {expected.get(key, 'nothing more')}, found "
                    f"{found.get(key, 'nothing')}."
                )
        for name, variable in wanted.items():
            variable.assign(reader.get_tensor(name))
    except (tf.errors.OpError, ValueError) as error:
        raise Corrupt(f"{path} is not readable ({str(error).splitlines()[0]}).") from None
    return facts


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of one checkpoint, by name."""
    manifest.verify(path)
    reader = tf.train.load_checkpoint(str(path / "state"))
    return {name: np.asarray(reader.get_tensor(name)) for name in sorted(reader.get_variable_to_shape_map())}


def best_model(run_dir: Path, config: Config, analysis: Analysis) -> keras.Model:
    """The model of a finished run with the weights of its best epoch, on one device, in float32."""
    outcome = runs.finished(run_dir)
    keras.config.set_dtype_policy("float32")
    model = spec_of(config.task).build(config.model, analysis)
    read(run_dir / "checkpoints" / outcome["best_checkpoint"], model)
    return model


def listed(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first."""
    return sorted((p for p in Path(root).glob("[0-9]*") if p.name.isdigit() and p.is_dir()), key=lambda p: int(p.name))


def prune(root: Path, step: int, keep: int, best: str | None, damaged: Collection[str] = ()) -> None:
    """Removes all but the `keep` newest checkpoints up to the one of update `step`, `damaged` ones aside, the one named
    `best`, and those that the newest call the best: a run may have to go on from any of them. Later ones were damaged
    when the run went on from before them; the log is not theirs any more."""
    until = [path for path in listed(root) if int(path.name) <= step and path.name not in damaged]
    newest, kept = until[-keep:], {best}
    for path in newest:
        with contextlib.suppress(UserError):
            kept.add(manifest.read(path).get("best"))
    for path in set(listed(root)) - set(newest):
        if path.name not in kept:
            manifest.remove(path)


_Submitted = tuple[int, dict[str, np.ndarray], dict[str, Any]]


class Writer:
    """Commits checkpoints in one thread beside the training, which waits only while the one before is being written.

    Nothing older is removed before the new checkpoint is committed and verified. A disk that refuses is a warning, and
    the next checkpoint tries again; ATTEMPTS failures in a row stop the run. To be entered by the process that holds
    the run's lock: what killed ones left under `root` is removed then.

    `before` is called in that thread before each commit: what must be on the disk by then, or fail as the commit does.
    `damaged` are the names of checkpoints that are not whole until they are written anew.
    """

    def __init__(
        self, root: Path, keep: int, before: Callable[[], None] = lambda: None, damaged: set[str] | None = None
    ):
        self.root, self.keep, self.before = Path(root), keep, before
        self.damaged = set() if damaged is None else damaged
        self.stalled = 0.0
        """Seconds that `submit` waited for the checkpoint before."""
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None
        self._failed: list[_Submitted] = []  # since the last success: at most ATTEMPTS
        self._failure: UserError | None = None

    def __enter__(self) -> "Writer":
        manifest.sweep(self.root, alone=True)
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except Exception as ours:
            if error is None:
                raise
            log.warning("the last checkpoint: %s", ours)  # what ended the training is the error to tell
        finally:
            self._thread.shutdown()

    def submit(self, step: int, arrays: dict[str, np.ndarray], facts: dict[str, Any], best: str | None) -> None:
        """Hands over a snapshot, which nobody may change from now on, to be written as `root/<step>` with the name of
        the `best` one among its facts; then what `prune` need not keep goes.

        Raises what the one before failed with: UserError(CANNOT_WRITE) after ATTEMPTS failures in a row of the disk,
        any other error at once.
        """
        start = time.perf_counter()
        self._wait()
        self.stalled += time.perf_counter() - start
        if self._failure is not None and len(self._failed) >= ATTEMPTS:
            raise UserError(f"{ATTEMPTS} checkpoints in a row failed. {self._failure}", CANNOT_WRITE)
        self._pending = self._thread.submit(self._commit, (step, arrays, {**facts, "best": best}))

    def close(self) -> None:
        """Waits until the last checkpoint is on the disk. Raises UserError(CANNOT_WRITE) where it could not be
        written."""
        self._wait()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _commit(self, new: _Submitted) -> None:
        best = new[2]["best"]
        try:
            self.before()
            for submitted in self._failed:  # which of them is the best is known only later; then it must be there
                if best == f"{submitted[0]:09d}":
                    write(self.root, *submitted)
            manifest.verify(made := write(self.root, *new))
            self.damaged.discard(made.name)
            prune(self.root, new[0], self.keep, best, self.damaged)
        except Exception as error:
            if storage_failure(error) is None and not isinstance(error, UserError):
                raise
            self._failed.append(new)
            self._failure = UserError(str(error), CANNOT_WRITE)
            log.warning("checkpoint %09d was not written, the ones before it stay: %s", new[0], error)
        else:
            self._failed, self._failure = [], None


def _named(part: str, variables: Iterable[keras.Variable]) -> dict[str, keras.Variable]:
    """The variables by their names in the file: part, place in the list, and Keras' path without the numbers in it,
    which count what else was built in this process."""
    return {f"{part}/{i:04d}/{_COUNT.sub('', v.path)}": v for i, v in enumerate(variables)}


def _key(name: str) -> str:
    return "/".join(name.split("/")[:2])


_COUNT = re.compile(r"_\d+(?=[/_]|$)")
