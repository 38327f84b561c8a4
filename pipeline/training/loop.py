"""The training loop: records directory -> run directory.

Many updates run in one compiled call; Python looks up between calls only, to log, to validate once an epoch and to
write checkpoints. All state is in the checkpoint or follows from the number of the update (order of the rows,
augmentation, dropout, learning rate), so a run that was stopped continues as if it had not been.

With several processes each makes the same calls in the same order; the chief alone decides and writes.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import custom_optimizers
from models.analysis import load
from models.spec import spec_of
from pipeline import checkpoints, manifest, records, runs
from pipeline.config import Config, difference
from pipeline.errors import TERMINATED, USAGE, Corrupt, UserError
from pipeline.release.evaluate import evaluate
from pipeline.training import cluster, compiler, descent, determinism, failure, inputs, plan, step
from pipeline.training.journal import Journal
from pipeline.training.monitors import Monitor
from pipeline.training.progress import Progress
from pipeline.training.rows import prepare
from pipeline.training.standing import Standing
from pipeline.training.stopping import Stopping
from pipeline.training.strategy import strategy_of

log = logging.getLogger(__name__)

PREPARED = "prepared"  # folder of an unfinished run for rows that do not fit into memory
MOST_SKIPPED, MOST_ROLLBACKS = 20, 10  # updates in a row, and times, after which skipping or going back is of no use

REMEDY = (
    "look at the rows, lower --optimizer.learning-rate or clip with --optimizer.clip, and add --fresh. The checkpoints "
    "before it stay."
)


def train(config: Config, records_dir: Path, preset: str = "") -> Path:
    """Trains until `train.epochs`, or `train.patience` epochs without a better score, and returns the run directory.

    The same call resumes an unfinished run and returns a finished one as it is. Raises UserError for changed settings,
    damaged records or checkpoints, a loss that is not finite (by `train.non_finite`), a disk that stays full, a worker
    that is gone, and (TERMINATED) after SIGTERM.
    """
    manifest.verify(records_dir)
    if config.train.deterministic:
        determinism.enable()
    if config.train.strategy == "cpu":
        compiler.prepare()
    strategy = strategy_of(config.train.strategy)  # before anything else of TensorFlow: clusters are set up only once
    with ExitStack() as held:

        def opened() -> str:
            run_dir = runs.open_run(config, runs.describe(config, preset, records_dir))
            held.enter_context(runs.locked(run_dir))
            finished = runs.result(run_dir) is not None
            manifest.sweep(run_dir, alone=not finished)  # of a finished run another command may be writing the export
            return json.dumps([str(run_dir), finished])

        run_dir, finished = json.loads(cluster.agreed(strategy, opened))
        if not finished:
            stopping = held.enter_context(Stopping(Path(run_dir)))
            Loop(config, records_dir, Path(run_dir), strategy).run(stopping)
    return Path(run_dir)


class Loop:
    """One run, from where it was left to its end."""

    def __init__(self, config: Config, records_dir: Path, run_dir: Path, strategy: tf.distribute.Strategy):
        self.records_dir, self.run_dir, self.strategy = records_dir, run_dir, strategy
        self.chief, spec = cluster.is_chief(strategy), spec_of(config.task)
        if config.train.batch_size % strategy.num_replicas_in_sync:
            raise UserError(
                f"--train.batch-size {config.train.batch_size}: must be a multiple of the "
                f"{strategy.num_replicas_in_sync} replicas.",
                USAGE,
            )
        # 1. Rows, and the fastest way to run on them; then what every number below depends on.
        analysis = load(records_dir, config.task)
        rows = _chief_first(strategy, lambda: prepare(records_dir, config, spec, analysis, run_dir / PREPARED))
        self.held_out = records.load(records_dir, "val", config.task)
        config = _chief_first(strategy, lambda: plan.settle(config, run_dir, rows, spec, analysis, strategy))
        self.config, self.spec, self.options = config, spec, config.train
        keras.config.set_dtype_policy(self.options.precision)
        keras.utils.set_random_seed(self.options.seed)

        # 2. Model and optimizer, with every variable there before the checkpoint is read.
        self.batches = inputs.Batches(rows, config, strategy)
        self.per_epoch = self.batches.per_epoch
        self.examples = len(rows) / self.per_epoch  # of an update: the last one of an epoch may have fewer
        self.total = self.options.epochs * self.per_epoch
        with cluster.watched(strategy), strategy.scope():  # each variable goes from the chief to all
            self.model = spec.build(config.model, analysis)
            self.optimizer = descent.optimizer_of(
                config.optimizer, self.per_epoch, self.options.epochs, self.options.precision
            )
            self.optimizer.build(self.model.trainable_variables)
        self.described = runs.read(run_dir / "config.json")
        self.classes = getattr(analysis, "classes", ())
        self.serving = spec.serve(self.model, config.model, analysis)  # validation asks the model as a client will
        self.averages = descent.averages(self.optimizer)
        self.samples = inputs.samples(rows, config, 32 if self.averages else 1)
        self.monitor = Monitor(self.model, spec, config, *self.samples[0])
        self.steps = step.compiled(self.model, self.optimizer, spec, config, strategy)

        # 3. Where the run was left.
        self.damaged: set[str] = set()  # checkpoints that were passed over
        self.standing = self._restored() or Standing()
        self.started = time.perf_counter() - self.standing.seconds
        self.saved_at = time.perf_counter()

    # 4. Many updates a call; an epoch ends with a checkpoint and validation.

    def run(self, stopping: Stopping) -> None:
        with ExitStack() as held:
            if self.chief:
                self.journal = self._journal()
                held.callback(lambda: self.journal.close())  # whichever it is then
                writer = checkpoints.Writer(self.root, self.options.keep, lambda: self.journal.sync(), self.damaged)
                self.writer = held.enter_context(writer)
                self.progress = held.enter_context(Progress(self.total, self.examples, self.standing.step))
            held.callback(self.batches.close)
            if self.options.non_finite == "rollback" and self.standing.step == 0:
                self._save()  # something to go back to
            while not self._over():
                if self.standing.validated < self.standing.step // self.per_epoch:
                    self._validate()
                else:
                    self._advance()
                if cluster.anyone(self.strategy, stopping.requested):
                    self._save()
                    self._written()
                    raise UserError(
                        f"{self.run_dir}: stopped by SIGTERM after update {self.standing.step}, which is saved; the "
                        "same command (without --fresh) goes on from there.",
                        TERMINATED,
                    )
            cluster.agreed(self.strategy, self._finished)  # nobody leaves while another waits for it

    def _over(self) -> bool:
        done = self.standing.validated * self.per_epoch == self.standing.step
        return done and (self.standing.step == self.total or self.standing.out_of_patience(self.options.patience))

    def _advance(self) -> None:
        """Makes the updates of one line of the log."""
        start, before = self.standing.step, time.perf_counter()
        end = start + sum(self.batches.counts(start))
        if self.standing.leaves_out(start):
            self.standing.step = end
        else:
            losses, monitored = [], {}
            while self.standing.step < end:
                count = self.batches.counts(self.standing.step)[0]
                last = (self.standing.step + count) % self.per_epoch == 0
                if last and self.chief:
                    self.monitor.watch()
                outcome = self._call(count)
                if last and self.chief:
                    monitored = self.monitor.read()
                bad, made = bool(outcome.bad), int(outcome.count)
                self.standing.count_skipped(bad and self.options.non_finite == "skip", made)
                if bad and not self._survives(outcome, start, end):
                    return
                losses += [float(outcome.loss)] * (made - bad)
                self.standing.step += made
            self._log(losses, outcome, monitored, (end - start) / (time.perf_counter() - before))
        due = self.chief and time.perf_counter() - self.saved_at > self.options.checkpoint_seconds  # clocks differ
        if self.standing.step % self.per_epoch == 0 or cluster.anyone(self.strategy, due):
            self._save()

    def _call(self, count: int) -> step.Outcome:
        part = self.batches.part(self.standing.step, count)
        try:
            with cluster.watched(self.strategy, lambda: self.standing.step):
                return tf.nest.map_structure(lambda tensor: tensor.numpy(), self.steps(part, count == 1))
        except tf.errors.UnimplementedError as error:  # XLA has no kernel, or none that is deterministic
            if not self.options.jit:
                raise
            lines = error.message.splitlines()
            first = next((line for line in lines[1:] if " " in line), lines[0])
            raise UserError(f"--train.jit: {first.strip()}; drop it or add --train.no-deterministic.", USAGE) from None

    def _log(self, losses: list[float], outcome: step.Outcome, monitored: dict[str, float], pace: float) -> None:
        if not self.chief or not losses:
            return
        line = {
            "loss": float(np.mean(losses)),
            "learning_rate": float(tf.convert_to_tensor(self.optimizer.learning_rate)),
            "gradient_norm": float(outcome.norm),
            "examples_per_second": pace * self.examples,
        }
        standing = self.standing
        epoch = -(-standing.step // self.per_epoch)
        self.journal.write(step=standing.step, epoch=epoch, split="train", **line)
        self.progress.update(standing.step, **line)
        if monitored:
            self.journal.write(step=standing.step, epoch=epoch, split="monitor", **monitored)

    # 5. What is not finite.

    def _survives(self, outcome: step.Outcome, start: int, end: int) -> bool:
        """Whether the updates from `start` to `end` go on after one that was not finite; raises where the run must not.
        After False the run stands at its last checkpoint."""
        standing, policy = self.standing, self.options.non_finite
        update = standing.step + int(outcome.count) - 1
        words = failure.words(outcome, update, self.batches, self.records_dir, self.config.task)
        if policy == "skip" and standing.skipped_in_a_row <= MOST_SKIPPED:
            log.warning("%s: %s; the update was skipped.", self.run_dir, words)
            return True
        if policy == "rollback" and len(standing.left_out) < MOST_ROLLBACKS:
            log.warning(
                "%s: %s; back to the last checkpoint, leaving out updates %d to %d.",
                self.run_dir,
                words,
                start + 1,
                end,
            )
            self._roll_back([*standing.left_out, [start, end]])
            return False
        raise UserError(f"{self.run_dir}: {words}; {REMEDY}")

    def _roll_back(self, left_out: list[list[int]]) -> None:
        self._written()
        restored = self._restored()
        assert restored is not None, "a run that may be rolled back writes a checkpoint before its first update"
        if self.standing.validated * self.per_epoch > restored.step:  # the newest checkpoint was damaged
            self.standing = restored
        self.standing.step, self.standing.left_out = restored.step, left_out
        if self.chief:
            self.journal.close()
            self.journal = self._journal()

    # 6. Checkpoints and validation.

    @property
    def root(self) -> Path:
        return self.run_dir / "checkpoints"

    def _journal(self) -> Journal:
        return Journal(self.run_dir, self.options.tensorboard, self.standing.step)

    def _restored(self) -> Standing | None:
        def newest() -> str:
            facts = checkpoints.restore(self.root, self.model, self.optimizer, self.damaged)
            if facts and (changes := runs.changes(facts["run"], self.described)):
                raise Corrupt(
                    f"{self.root}: checkpoint {facts['step']:09d} is of another run ({'; '.join(changes)}): remove it, "
                    "or pass --fresh."
                )
            return json.dumps(facts and [facts["step"], facts["standing"], facts["plan"]])

        found = json.loads(cluster.agreed(self.strategy, newest))
        if found and (changes := difference(found[2], plan.of(self.options))):
            raise Corrupt(
                f"{self.run_dir}/plan.json is not the plan that checkpoint {found[0]:09d} was made by "
                f"({'; '.join(changes)}): restore it from a copy, or pass --fresh."
            )
        if found and not self.chief:
            checkpoints.read(self.root / f"{found[0]:09d}", self.model, self.optimizer)
        return Standing(**found[1]) if found else None

    def _save(self) -> None:
        """A checkpoint of what training goes on from and, at the end of an epoch, of what is evaluated."""
        begin = time.perf_counter()
        standing, evaluated = self.standing, None
        if self.averages and standing.step % self.per_epoch == 0:
            with self._evaluating():
                evaluated = checkpoints.values(self.model.variables)
        self.saved_at, standing.seconds = begin, begin - self.started

        def submit() -> str:
            arrays = checkpoints.snapshot(self.model, self.optimizer, evaluated)
            if (name := checkpoints.non_finite(arrays)) is not None:
                raise UserError(f"{self.run_dir}: {name} is not finite after update {standing.step}; {REMEDY}")
            facts = {"standing": asdict(standing), "plan": plan.of(self.options), "run": self.described}
            self.writer.submit(standing.step, arrays, facts, standing.best_checkpoint or None)
            return ""

        cluster.agreed(self.strategy, submit)
        standing.stalled += time.perf_counter() - begin

    def _written(self) -> None:
        """Returns when all checkpoints are on the disk."""
        cluster.agreed(self.strategy, lambda: self.writer.close() or "")  # type: ignore[func-returns-value]

    def _evaluating(self):
        """Inside, the model has the weights to evaluate."""
        if not self.averages:
            return nullcontext()
        return custom_optimizers.evaluating(self.optimizer, self.model, [batch for batch, _ in self.samples])

    def _validate(self) -> None:
        standing = self.standing
        epoch = standing.step // self.per_epoch

        def metrics() -> str:
            return json.dumps(
                validate(self.serving.functions, self.held_out, self.config.task, self.classes, self.run_dir)
            )

        with self._evaluating():
            found = json.loads(cluster.agreed(self.strategy, metrics))
        better = standing.judge(epoch, standing.step, found[self.spec.monitor], self.spec.lower_is_better)
        if self.chief:
            self.journal.write(step=standing.step, epoch=epoch, split="val", **found)
            self.progress.epoch(epoch, self.options.epochs, found, better)

    def _finished(self) -> str:
        self.writer.close()
        self.journal.sync()
        self.standing.seconds = time.perf_counter() - self.started
        outcome = self.standing.outcome(self.per_epoch, self.total, self.examples)
        shutil.rmtree(self.run_dir / PREPARED, ignore_errors=True)
        manifest.write_file(self.run_dir / "training.json", json.dumps(outcome, indent=1))
        return ""


def validate(signatures: dict, rows: dict, task: str, classes: tuple[str, ...], run_dir: Path) -> dict[str, float]:
    """The metrics on the validation rows. Raises UserError when the model cannot answer them."""
    evaluation = evaluate(signatures, rows, task, classes, intervals=False)
    if evaluation.problems:
        raise UserError(f"{run_dir}: validation failed: {'; '.join(evaluation.problems)}.")
    return evaluation.metrics


def _chief_first(strategy: tf.distribute.Strategy, do: Callable[[], Any]) -> Any:
    """do() in every process, in the chief before the others: it leaves files that they read."""
    done: list = []
    cluster.agreed(strategy, lambda: done.append(do()) or "")  # type: ignore[func-returns-value]
    return done[0] if done else do()
