"""The execution plan: which way of running the same descent is the fastest on this machine, measured before update 1.

A candidate is (XLA or not, precision, inputs in memory or streamed) with as many updates a call as fit into
CALL_SECONDS and MOST_BYTES. Each is tried on a model of its own, from the run's own first batches; it is kept only if
its losses agree with those of the plain one. The choice is written into the run before its first update and is never
measured again for it: a resumed run goes on as it began. Measured plans are kept in the cache, by everything that they
depend on.
"""

import dataclasses
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from models.analysis import Analysis
from models.spec import ModelSpec
from pipeline import manifest, runs
from pipeline.config import Config, Train, to_json
from pipeline.errors import Corrupt
from pipeline.training import descent, inputs, step
from pipeline.training.rows import Rows

log = logging.getLogger(__name__)

CALL_SECONDS = 0.5  # the longest that one compiled call may take: signals and logs wait for it
TRIAL_SECONDS = 1.0  # how long a candidate is timed, compiling aside
COMPARED = 8  # updates whose mean loss must agree with that of the plain candidate
WAYS = ("jit", "precision", "inputs", "steps_per_call")
TOLERANCE = {"float32": 1e-3, "mixed_bfloat16": 5e-2, "mixed_float16": 5e-2}
MOST = 2000  # updates a call, at the most
MOST_BYTES = 64 * 2**20  # and their rows, of which several calls' are held at once


@dataclasses.dataclass(frozen=True)
class Trial:
    """One candidate as it was tried; `note` says why it was kept or not."""

    jit: bool
    precision: Any  # one of Train.precision
    inputs: Any = "memory"  # one of Train.inputs
    steps_per_call: int = 1
    milliseconds: float | None = None  # one update
    loss: float | None = None  # mean over the compared updates
    note: str = ""


def settle(config: Config, run_dir: Path, rows: Rows, spec: ModelSpec, analysis: Analysis, strategy) -> Config:
    """The config with jit, precision, inputs and steps_per_call as they will be run.

    Writes run_dir/plan.json on the first call and obeys it ever after. Raises Corrupt when it is gone, or damaged,
    from a run that has checkpoints.
    """
    path = Path(run_dir) / "plan.json"
    if not path.is_file():
        if (Path(run_dir) / "checkpoints").is_dir():
            raise Corrupt(f"{path} is gone: without it the run cannot go on as it began; restore it, or pass --fresh.")
        measured = config.train.plan == "measured" and config.train.strategy != "multi_worker"  # clocks would disagree
        trials = _known(config, rows, spec, analysis, strategy) if measured else [_given(config, rows)]
        chosen = choose(trials)
        document = {"chosen": dataclasses.asdict(chosen), "trials": [dataclasses.asdict(trial) for trial in trials]}
        manifest.write_file(path, json.dumps(document, indent=1))
    chosen = runs.read(path)["chosen"]
    if (chosen["milliseconds"] or 0.0) > CALL_SECONDS * 1e3:
        log.warning(
            "one update takes %.1f s: SIGTERM may cut it off, and all since the last checkpoint would be lost; a "
            "smaller --train.batch-size takes less.",
            chosen["milliseconds"] / 1e3,
        )
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **{way: chosen[way] for way in WAYS}))


def of(train: Train | Trial) -> dict[str, Any]:
    """The way that `train` says."""
    return {way: getattr(train, way) for way in WAYS}


def choose(trials: list[Trial]) -> Trial:
    """The fastest of those that ran and agree with the first, the plain one; streaming must pay to be chosen."""
    kept = (t for t in trials if t.note in ("", "plain"))
    return min(kept, key=lambda t: (t.milliseconds or 0.0) * (1.05 if t.inputs == "streamed" else 1.0))


def _given(config: Config, rows: Rows) -> Trial:
    train = config.train
    return Trial(train.jit, train.precision, "streamed" if rows.on_disk else train.inputs, train.steps_per_call)


def candidates(train: Train, rows: Rows) -> list[Trial]:
    """What may be tried first: XLA where shapes are fixed and one device runs, bfloat16 where it is allowed."""
    precisions = [train.precision]
    if train.allow_bfloat16 and train.precision == "float32":
        precisions.append("mixed_bfloat16")
    fixed = rows.lengths is None and train.strategy in ("cpu", "gpu")  # as config.check has it of --train.jit
    place = "streamed" if rows.on_disk else "memory"
    return [Trial(jit, precision, place) for precision in precisions for jit in ((False, True) if fixed else (False,))]


def _known(config: Config, rows: Rows, spec: ModelSpec, analysis: Analysis, strategy) -> list[Trial]:
    """The trials of the same model, shapes, machine and versions out of the cache, or measured and put there."""
    key = manifest.fingerprint(
        {
            "model": to_json(config.model),
            "optimizer": to_json(config.optimizer),
            "train": {
                name: getattr(config.train, name)
                for name in ("batch_size", "precision", "allow_bfloat16", "non_finite")
            },
            "deterministic": config.train.deterministic,
            "rows": len(rows),
            "inputs": {n: [str(c.values.dtype), c.values.shape, c.starts is None] for n, c in rows.inputs.items()},
            "on_disk": rows.on_disk,
            "strategy": [config.train.strategy, strategy.num_replicas_in_sync],
            "analysis": [len(getattr(analysis, name, ())) for name in ("classes", "users", "items")],
            "machine": [
                _processor(),
                len(os.sched_getaffinity(0)),
                os.environ.get("TF_NUM_INTRAOP_THREADS"),
                [d.name for d in tf.config.list_logical_devices()],
            ],
            "versions": [tf.__version__, keras.__version__, os.environ.get("XLA_FLAGS")],
            "code": manifest.code_fingerprint(*runs.CODE),
        }
    )
    path = config.cache_root / "plans" / f"{key}.json"
    if path.is_file():
        try:
            return [Trial(**trial) for trial in json.loads(path.read_bytes())]
        except (ValueError, TypeError):
            path.unlink()  # cut off or of another version: measure again
    trials = measure(config, rows, spec, analysis, strategy)
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_file(path, json.dumps([dataclasses.asdict(trial) for trial in trials]))
    return trials


def measure(config: Config, rows: Rows, spec: ModelSpec, analysis: Analysis, strategy) -> list[Trial]:
    """Every candidate timed. Leaves global state (seed, dtype policy, names of layers) for the caller to set."""
    trials: list[Trial] = []

    def add(candidate: Trial) -> None:
        try:
            trial = _try(candidate, config, rows, spec, analysis, strategy)
        except (tf.errors.OpError, ValueError, NotImplementedError) as error:
            trial = dataclasses.replace(candidate, note=f"does not run: {_first_line(error)}")
            if not trials:
                raise
        if trials and not trial.note:
            trial = _compared(trial, trials[0])
        trials.append(trial if trials else dataclasses.replace(trial, note="plain"))
        log.info("plan: %s", _words(trials[-1]))

    for candidate in candidates(config.train, rows):
        add(candidate)
    if not rows.on_disk:  # where the inputs lie concerns every candidate alike: it is asked of the best one
        best = choose(trials)
        add(Trial(best.jit, best.precision, "streamed"))
    keras.backend.clear_session()  # names of layers count on otherwise, and a path would depend on the measuring
    return trials


def _try(candidate: Trial, config: Config, rows, spec: ModelSpec, analysis: Analysis, strategy) -> Trial:
    per_epoch = -(-len(rows) // config.train.batch_size)
    keras.config.set_dtype_policy(candidate.precision)
    keras.utils.set_random_seed(config.train.seed)
    with strategy.scope():
        model = spec.build(config.model, analysis)
        optimizer = descent.optimizer_of(config.optimizer, per_epoch, config.train.epochs, candidate.precision)
        optimizer.build(model.trainable_variables)
    compared, calls = None, min(COMPARED, per_epoch)
    while True:
        way = of(dataclasses.replace(candidate, steps_per_call=calls))
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **way))
        batches = inputs.Batches(rows, config, strategy)
        loss, pace, slow = _timed(step.compiled(model, optimizer, spec, config, strategy), batches)
        batches.close()
        compared = loss if compared is None else compared
        held = MOST_BYTES // (rows.row_bytes * config.train.batch_size)
        fitting = max(1, min(int(CALL_SECONDS / slow), MOST, per_epoch, held))
        # Of a short call most is spent around the updates: then as many as fit are timed as well.
        if calls * pace > CALL_SECONDS / 10 or calls >= fitting:
            return dataclasses.replace(candidate, steps_per_call=fitting, milliseconds=pace * 1e3, loss=compared)
        calls = fitting


def _timed(steps, batches: inputs.Batches) -> tuple[float, float, float]:
    """The mean loss of the first updates, of as many for each candidate, NaN if one was not finite; and the seconds of
    an update in calls as the loop makes them, the median and what one in ten exceeds, as long texts do. The first calls
    trace and compile; those of one update alone, which are others, are left out."""
    losses: list[float] = []
    made = at = 0
    while made < COMPARED - 1:  # over several epochs where they are short: the first loss knows nothing of gradients
        count, *rest = batches.counts(at)
        outcome = steps(batches.part(at, count), count == 1)
        losses.append(math.nan if outcome.bad else float(outcome.loss))
        made, at = made + count, at + count + sum(rest)
    spent: list[float] = []
    begin = time.perf_counter()
    while not spent or time.perf_counter() - begin < TRIAL_SECONDS:
        start, (count, *rest) = time.perf_counter(), batches.counts(at)
        outcome = steps(batches.part(at, count), count == 1)
        spent.append((time.perf_counter() - start) / int(outcome.count))
        at += count + sum(rest)
    return float(np.mean(losses)), float(np.median(spent)), float(np.quantile(spent, 0.9))


def _compared(trial: Trial, plain: Trial) -> Trial:
    mine, reference = float(trial.loss or 0.0), float(plain.loss or 0.0)
    apart = abs(mine - reference) / max(abs(reference), 1e-12)
    if apart <= TOLERANCE[trial.precision]:  # not so for NaN
        return trial
    return dataclasses.replace(trial, note=f"losses differ by {apart:.1%}" if np.isfinite(mine) else "not finite")


def _words(trial: Trial) -> str:
    way = f"{trial.precision}, {'XLA' if trial.jit else 'no XLA'}, {trial.inputs}"
    pace = "" if trial.milliseconds is None else f": {trial.milliseconds:.3g} ms an update"
    return way + pace + (f" ({trial.note})" if trial.note not in ("", "plain") else "")


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(getattr(error, "message", error)).splitlines() if " " in line.strip()]
    return (lines or [type(error).__name__])[0][:120]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"
