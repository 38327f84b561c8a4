"""Claims about the training loop, on tiny records of each task."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import custom_optimizers
from models.analysis import load
from models.image import SPEC
from pipeline import checkpoints, runs
from pipeline.config import Config, Optimizer
from pipeline.errors import TERMINATED, USAGE, UserError
from pipeline.records import load as load_rows
from pipeline.training import descent, loop
from tests import tiny


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("records")
    return {task: tiny.records_dir(task, root) for task in tiny.TASKS}


@pytest.fixture(scope="module")
def undisturbed(records, tmp_path_factory) -> Callable[[str], Path]:
    """The run of a task that nobody stopped, trained once."""
    root = tmp_path_factory.mktemp("undisturbed")
    return functools.cache(lambda task: loop.train(tiny.config(task, root), records[task]))


def weights(run_dir: Path, config: Config, records_dir: Path) -> list[np.ndarray]:
    model = checkpoints.best_model(run_dir, config, load(records_dir, config.task))
    return [variable.numpy() for variable in model.variables]


def final(run_dir: Path) -> dict[str, bytes]:
    """The last checkpoint bit by bit: weights, slots and seeds."""
    arrays = checkpoints.arrays(checkpoints.listed(run_dir / "checkpoints")[-1])
    assert len(arrays) >= 5
    return {name: array.tobytes() for name, array in arrays.items()}


def lines(run_dir: Path, split: str) -> list[dict]:
    text = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["split"] == split]


def without_chance(config: Config) -> Config:
    """No dropout, no batch norm, no augmentation: replicas can then be compared with one device."""
    changes = {"dropout": 0.0, "batch_norm": False, "flip": False, "crop": 0}
    has = {f.name for f in dataclasses.fields(config.model)}
    model = dataclasses.replace(config.model, **{name: v for name, v in changes.items() if name in has})
    return dataclasses.replace(config, model=model)


@pytest.mark.parametrize("task", tiny.TASKS)
def test_it_learns_and_the_best_epoch_is_the_one_exported(task, records, tmp_path):
    config = tiny.config(task, tmp_path, epochs=4)
    run_dir = loop.train(config, records[task], "tiny")
    outcome, metric = runs.finished(run_dir), "rmse" if task == "recommendation" else "accuracy"
    scores = [line[metric] for line in lines(run_dir, "val")]
    assert len(scores) == 4
    assert outcome["best_score"] == (min(scores) if metric == "rmse" else max(scores))
    assert outcome["best_epoch"] == 1 + scores.index(outcome["best_score"])
    assert outcome["best_score"] < 0.75 if metric == "rmse" else outcome["best_score"] > 0.9
    assert (run_dir / "checkpoints" / outcome["best_checkpoint"]).is_dir()
    losses = [line["loss"] for line in lines(run_dir, "train")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("task", tiny.TASKS)
def test_a_seed_decides_every_bit_and_another_seed_another_model(task, records, undisturbed, tmp_path):
    first = final(undisturbed(task))
    again = final(loop.train(tiny.config(task, tmp_path / "a"), records[task]))
    other = final(loop.train(tiny.with_train(tiny.config(task, tmp_path / "b"), seed=1), records[task]))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("task", "after"), [("image", 1), ("image", 4), ("sentiment", 2), ("recommendation", 1), ("recommendation", 4)]
)
def test_a_run_stopped_in_the_middle_of_an_epoch_ends_bit_equal_to_one_that_was_not(
    task, after, records, undisturbed, tmp_path, monkeypatch
):
    config, stop = tiny.config(task, tmp_path / "b"), StopAfter(after)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Stopping", lambda _: contextlib.nullcontext(stop))
        with pytest.raises(UserError, match="stopped by SIGTERM") as raised:
            loop.train(config, records[task])
    assert raised.value.code == TERMINATED
    resumed = loop.train(config, records[task])
    whole = undisturbed(task)
    assert final(resumed) == final(whole)
    for split in ("train", "val"):
        steps = [line["step"] for line in lines(resumed, split)]
        assert steps == sorted(set(steps))
    assert [line["step"] for line in lines(resumed, "val")] == [line["step"] for line in lines(whole, "val")]


def averaged(root: Path, **train) -> Config:
    rule = Optimizer(name="schedule_free_adamw", learning_rate=0.05)
    return dataclasses.replace(tiny.config("image", root, **train), optimizer=rule)


def test_what_is_validated_and_exported_are_the_evaluation_weights(records, tmp_path):
    config, analysis = averaged(tmp_path, epochs=3), load(records["image"], "image")
    run_dir = loop.train(config, records["image"])
    best = checkpoints.best_model(run_dir, config, analysis)
    held_out = load_rows(records["image"], "val", "image")
    functions = SPEC.serve(best, config.model, analysis).functions
    metrics = loop.validate(functions, held_out, "image", analysis.classes, run_dir)
    assert metrics["accuracy"] == pytest.approx(runs.finished(run_dir)["best_score"])
    trained = SPEC.build(config.model, analysis)
    path = run_dir / "checkpoints" / runs.finished(run_dir)["best_checkpoint"]
    optimizer = descent.optimizer_of(config.optimizer, 6, 3)
    optimizer.build(trained.trainable_variables)
    checkpoints.read(path, trained, optimizer)
    expected = custom_optimizers.evaluation_weights(optimizer, trained)
    for variable, left, value in zip(best.trainable_variables, trained.trainable_variables, expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
        assert (variable.numpy() != left.numpy()).any()


def test_a_stopped_run_of_averaged_weights_ends_bit_equal_too(records, tmp_path, monkeypatch):
    undisturbed = loop.train(averaged(tmp_path / "a"), records["image"])
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Stopping", lambda _: contextlib.nullcontext(StopAfter(3)))
        with pytest.raises(UserError, match="stopped by SIGTERM"):
            loop.train(averaged(tmp_path / "b"), records["image"])
    assert final(loop.train(averaged(tmp_path / "b"), records["image"])) == final(undisturbed)


class StopAfter:
    """SIGTERM as it looks to the loop when it comes before the n-th look."""

    def __init__(self, looks: int):
        self.looks = looks

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks <= 0


@pytest.mark.parametrize(
    ("task", "clip"),
    [
        *((task, "none") for task in tiny.TASKS),
        ("image", "global_norm"),
        *(pytest.param("image", clip, marks=pytest.mark.slow) for clip in ("norm", "value")),
    ],
)
def test_two_replicas_descend_as_one_does_also_where_clipping_bites(task, clip, records, tmp_path):
    rule = Optimizer(name="sgd", learning_rate=0.1, arguments={"momentum": 0.9}, clip=clip, clip_at=0.02)
    losses = []
    for strategy in ("cpu", "mirrored"):
        # The last batch of the 96 rows is uneven: 96 = 2 * 40 + 16
        config = without_chance(
            tiny.config(task, tmp_path / strategy, strategy=strategy, batch_size=40, steps_per_call=1)
        )
        run_dir = loop.train(dataclasses.replace(config, optimizer=rule), records[task])
        losses.append([(line["loss"], line["gradient_norm"]) for line in lines(run_dir, "train")])
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)
    assert len(losses[0]) == 6
    assert losses[0][0][0] != losses[0][-1][0]


def test_clipping_changes_the_descent(records, tmp_path):
    ends = set()
    for clip in ("none", "global_norm", "norm", "value"):
        rule = Optimizer(name="sgd", learning_rate=0.1, clip=clip, clip_at=0.02)
        config = dataclasses.replace(tiny.config("image", tmp_path / clip), optimizer=rule)
        ends.add(lines(loop.train(config, records["image"]), "train")[-1]["loss"])
    assert len(ends) == 4


def test_training_stops_when_patience_runs_out(records, tmp_path):
    config = tiny.config("image", tmp_path, epochs=9, patience=2)
    still = dataclasses.replace(config, optimizer=Optimizer(name="sgd", learning_rate=1e-12))
    outcome = runs.finished(loop.train(still, records["image"]))
    assert outcome["stopped"] == "early"
    assert outcome["epochs"] == outcome["best_epoch"] + 2 < 9


def test_the_learning_rate_in_the_log_is_the_schedules(records, tmp_path):
    rule = Optimizer(learning_rate=0.01, schedule="cosine")
    config = dataclasses.replace(tiny.config("recommendation", tmp_path, steps_per_call=3), optimizer=rule)
    rates = [line["learning_rate"] for line in lines(loop.train(config, records["recommendation"]), "train")]
    np.testing.assert_allclose(rates, [0.005 * (1 + np.cos(np.pi * s / 12)) for s in (3, 6, 9, 12)], atol=1e-8)


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line_and_keeps_the_checkpoints(records, tmp_path):
    config = tiny.config("recommendation", tmp_path, epochs=200, steps_per_call=6, patience=200)
    config = dataclasses.replace(config, optimizer=Optimizer(name="sgd", learning_rate=3.0))
    with pytest.raises(UserError, match=r"the loss is .* lower --optimizer.learning-rate") as raised:
        loop.train(config, records["recommendation"])
    assert "\n" not in str(raised.value)


def test_examples_per_second_count_rows_and_not_what_fills_up_a_batch(records, tmp_path):
    run_dir = loop.train(tiny.config("recommendation", tmp_path, batch_size=64), records["recommendation"])
    outcome = json.loads((run_dir / "training.json").read_text())
    assert outcome["examples_per_second"] * outcome["seconds"] == pytest.approx(2 * tiny.SIZES["train"])


def test_a_finished_run_is_returned_as_it_is(records, undisturbed):
    run_dir = undisturbed("recommendation")
    config = tiny.config("recommendation", run_dir.parents[2])
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*") if p.is_file() and p.name != ".lock"}
    assert loop.train(config, records["recommendation"]) == run_dir
    assert before == {p: p.stat().st_mtime_ns for p in run_dir.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_learns_the_same_task(precision, records, tmp_path):
    config = tiny.config("image", tmp_path, precision=precision, epochs=4)
    outcome = runs.finished(loop.train(config, records["image"]))
    assert outcome["best_score"] > 0.9


def test_xla_descends_as_the_plain_step_does(records, tmp_path):
    losses = []
    for jit in (False, True):
        config = tiny.config("recommendation", tmp_path / str(jit), jit=jit)
        log = lines(loop.train(config, records["recommendation"]), "train")
        losses.append([(line["step"], line["loss"], line["gradient_norm"]) for line in log])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert np.all(losses)


def test_an_operation_that_xla_cannot_do_deterministically_is_one_line_that_says_which_flag_to_drop(records, tmp_path):
    with pytest.raises(UserError, match=r"MaxPool.*--train.no-deterministic") as raised:
        loop.train(tiny.config("image", tmp_path, jit=True), records["image"])
    assert "\n" not in str(raised.value)


def test_a_batch_that_the_replicas_cannot_share_is_a_usage_error(records, tmp_path):
    with pytest.raises(UserError, match="multiple of the 2 replicas") as raised:
        loop.train(tiny.config("image", tmp_path, strategy="mirrored", batch_size=15), records["image"])
    assert raised.value.code == USAGE


def test_records_that_changed_on_disk_are_refused_before_anything_is_written(tmp_path):
    directory = tiny.records_dir("image", tmp_path)
    shard = next(directory.glob("train-*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=shard.name):
        loop.train(tiny.config("image", tmp_path), directory)
    assert not (tmp_path / "runs").exists()
