"""The training loop: records directory -> run directory.

Many updates run in one compiled call; Python looks up between calls only, to log, to validate once an epoch and to
write checkpoints. All state is in the checkpoint (variables, seeds of dropout) or follows from the update number
(order of the rows, augmentation, learning rate), so a run that was stopped continues as if it had not been.
"""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import custom_optimizers
from models.analysis import load
from models.spec import spec_of
from pipeline import checkpoints, manifest, records, runs
from pipeline.config import Config
from pipeline.errors import TERMINATED, USAGE, UserError
from pipeline.release.evaluate import evaluate
from pipeline.training import descent, inputs, plan, step
from pipeline.training.journal import Journal
from pipeline.training.progress import Progress
from pipeline.training.strategy import strategy_of


def train(config: Config, records_dir: Path, preset: str = "") -> Path:
    """Trains until `train.epochs`, or `train.patience` epochs without a better score, and returns the run directory.

    The same call resumes an unfinished run and returns a finished one as it is. Raises UserError for changed
    settings, a loss that is not finite, damaged records or checkpoints, and (TERMINATED) after SIGTERM.
    """
    manifest.verify(records_dir)
    run_dir = runs.open_run(config, runs.describe(config, preset, records_dir))
    with runs.locked(run_dir):
        if runs.result(run_dir) is None:
            _train(config, records_dir, run_dir)
    return run_dir


@dataclass
class Standing:
    """Where a run is: JSON values, kept in every checkpoint."""

    step: int = 0
    best_score: float | None = None
    best_epoch: int = 0
    best_checkpoint: str = ""
    seconds: float = 0.0

    def better(self, score: float, lower_is_better: bool) -> bool:
        if self.best_score is None:
            return True
        return score < self.best_score if lower_is_better else score > self.best_score


def _train(config: Config, records_dir: Path, run_dir: Path) -> None:
    options, spec = config.train, spec_of(config.task)
    # 1. Devices.
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = strategy_of(options.strategy)
    if options.batch_size % strategy.num_replicas_in_sync:
        raise UserError(
            f"--train.batch-size {options.batch_size}: must be a multiple of the "
            f"{strategy.num_replicas_in_sync} replicas.",
            USAGE,
        )

    # 2. Rows, in memory, and the fastest way to run on them; then what every number below depends on.
    analysis = load(records_dir, config.task)
    rows = inputs.prepare(records_dir, config, spec, analysis)
    held_out = records.load(records_dir, "val", config.task)
    per_epoch = -(-len(rows) // options.batch_size)
    config = plan.settle(config, run_dir, rows, spec, analysis, strategy)
    options = config.train
    keras.config.set_dtype_policy(options.precision)
    keras.utils.set_random_seed(options.seed)

    # 3. Model and optimizer, with every variable there before the checkpoint is read.
    with strategy.scope():
        model = spec.build(config.model, analysis)
        optimizer = descent.optimizer_of(config.optimizer, per_epoch, options.epochs, options.precision)
        optimizer.build(model.trainable_variables)
    classes = getattr(analysis, "classes", ())
    serving = spec.serve(model, config.model, analysis)  # validation asks the model as a client will

    # 4. Where the run was left.
    root = run_dir / "checkpoints"
    manifest.sweep(root)
    saved = checkpoints.restore(root, model, optimizer)
    standing = Standing(**saved["standing"]) if saved else Standing()
    part = inputs.parts(rows, config, spec, strategy)
    steps = step.compiled(model, optimizer, spec, config, strategy, inputs.batch(rows, config, spec))
    total, started = options.epochs * per_epoch, time.perf_counter() - standing.seconds

    averages = descent.averages(optimizer)
    samples = inputs.samples(rows, config) if averages else None

    def save(evaluated: list | None = None) -> None:
        standing.seconds = time.perf_counter() - started
        journal.sync()
        checkpoints.save(root, standing.step, model, optimizer, {"standing": vars(standing)}, evaluated)
        checkpoints.prune(root, options.keep, standing.best_checkpoint)

    # 5. Many updates a call; an epoch ends with validation and a checkpoint.
    with (
        _stop_on_sigterm() as stop,
        Journal(run_dir, options.tensorboard, standing.step) as journal,
        Progress(total, options.batch_size, standing.step) as progress,
    ):
        while standing.step < total and not _out_of_patience(standing, per_epoch, config):
            epoch = standing.step // per_epoch + 1
            count = min(options.steps_per_call, epoch * per_epoch - standing.step)
            before = time.perf_counter()
            try:
                losses, norm = (value.numpy() for value in steps(part(standing.step, count)))
            except tf.errors.UnimplementedError as error:  # XLA has no kernel, or none that is deterministic
                first = next(line for line in error.message.splitlines()[1:] if " " in line)
                raise UserError(
                    f"--train.jit: {first.strip()}; drop it or add --train.no-deterministic.", USAGE
                ) from None
            standing.step += count
            line = {
                "loss": float(losses),
                "learning_rate": float(tf.convert_to_tensor(optimizer.learning_rate)),
                "gradient_norm": float(norm),
                "examples_per_second": count * options.batch_size / (time.perf_counter() - before),
            }
            journal.write(step=standing.step, epoch=epoch, split="train", **line)
            progress.update(standing.step, **line)
            if not tf.math.is_finite(losses):
                raise UserError(
                    f"{run_dir}: the loss is {losses} at update {standing.step}; lower "
                    "--optimizer.learning-rate or clip with --optimizer.clip, and add --fresh. "
                    "The checkpoints before it stay."
                )
            if standing.step == epoch * per_epoch:
                with custom_optimizers.evaluating(optimizer, model, samples) if averages else nullcontext():
                    metrics = validate(serving.functions, held_out, config.task, classes, run_dir)
                    evaluated = [keras.ops.convert_to_numpy(v) for v in model.variables] if averages else None
                score = metrics[spec.monitor]
                if better := standing.better(score, spec.lower_is_better):
                    standing.best_score, standing.best_epoch = score, epoch
                    standing.best_checkpoint = f"{standing.step:09d}"
                journal.write(step=standing.step, epoch=epoch, split="val", **metrics)
                progress.epoch(epoch, options.epochs, metrics, better)
                save(evaluated)
            if stop.is_set():
                save()
                raise UserError(
                    f"{run_dir}: stopped by SIGTERM after update {standing.step}, which is saved; the same "
                    "command (without --fresh) goes on from there.",
                    TERMINATED,
                )
    _finish(run_dir, standing, per_epoch, total, options.batch_size)


def validate(signatures: dict, rows: dict, task: str, classes: tuple[str, ...], run_dir: Path) -> dict[str, float]:
    """The metrics on the validation rows. Raises UserError when the model cannot answer them."""
    evaluation = evaluate(signatures, rows, task, classes, intervals=False)
    if evaluation.problems:
        raise UserError(f"{run_dir}: validation failed: {'; '.join(evaluation.problems)}.")
    return evaluation.metrics


def _out_of_patience(standing: Standing, per_epoch: int, config: Config) -> bool:
    at_epoch_end = standing.step % per_epoch == 0
    return at_epoch_end and standing.step // per_epoch - standing.best_epoch >= config.train.patience


@contextmanager
def _stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that the first SIGTERM sets; the second one ends the process at once."""
    stop = threading.Event()

    def handle(number, frame):
        stop.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen
        yield stop
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _finish(run_dir: Path, standing: Standing, per_epoch: int, total: int, batch_size: int) -> None:
    outcome: dict[str, Any] = {
        "best_checkpoint": standing.best_checkpoint,
        "best_epoch": standing.best_epoch,
        "best_score": standing.best_score,
        "best_step": int(standing.best_checkpoint),
        "epochs": standing.step // per_epoch,
        "examples_per_second": standing.step * batch_size / standing.seconds,
        "seconds": standing.seconds,
        "steps": standing.step,
        "stopped": "done" if standing.step == total else "early",
    }
    manifest.write_file(run_dir / "training.json", json.dumps(outcome, indent=1))
