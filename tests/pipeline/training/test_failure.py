"""Claims about losses and gradients that are not finite."""

import dataclasses
import functools
import logging

import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers
from pipeline import checkpoints, runs
from pipeline.config import Optimizer
from pipeline.errors import UserError
from pipeline.training import loop
from pipeline.training.journal import read
from pipeline.training.rows import prepare
from pipeline.training.standing import Standing
from tests import tiny

POISONED = 7
BROKEN = 4.25  # a rating whose loss is finite and whose gradient is not


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tiny.records_dir("recommendation", tmp_path_factory.mktemp("failure"))


@pytest.fixture
def poisoned(monkeypatch):
    """One training row has a rating that is no number."""

    def poison(*arguments):
        rows = prepare(*arguments)
        target = rows.target.copy()
        target[POISONED] = np.nan
        return dataclasses.replace(rows, target=target)

    monkeypatch.setattr(loop, "prepare", poison)


@pytest.fixture
def broken(monkeypatch):
    """One training row has a finite loss, as sqrt(0) has, whose gradient is infinite."""

    def damage(*arguments):
        rows = prepare(*arguments)
        target = rows.target.copy()
        target[POISONED] = BROKEN
        return dataclasses.replace(rows, target=target)

    @tf.custom_gradient
    def steep(losses, target):
        return losses, lambda g: (tf.where(target == BROKEN, np.inf, g), None)

    spec = loop.spec_of("recommendation")
    monkeypatch.setattr(loop, "prepare", damage)
    monkeypatch.setattr(
        loop, "spec_of", lambda _: dataclasses.replace(spec, loss=lambda t, *rest: steep(spec.loss(t, *rest), t))
    )


def train(records, root, name: str = "adam", rate: float = 0.01, **options):
    rule = Optimizer(name=name, learning_rate=rate)
    return loop.train(dataclasses.replace(tiny.config("recommendation", root, **options), optimizer=rule), records)


def arrays(run_dir):
    return checkpoints.arrays(checkpoints.listed(run_dir / "checkpoints")[-1])


def test_by_default_the_run_stops_and_names_the_example(poisoned, records, tmp_path):
    with pytest.raises(
        UserError, match=r"the loss is nan at update \d+; it comes from example train-7; look"
    ) as raised:
        train(records, tmp_path, steps_per_call=1)
    assert "\n" not in str(raised.value)
    update = int(str(raised.value).split("update ")[1].split(";")[0])
    assert max(line["step"] for line in read(runs.newest_run(tmp_path / "runs/tiny-recommendation"))) == update - 1


@pytest.mark.parametrize(
    ("name", "strategy"),  # ours; ours, sparse; Keras' own
    [
        ("adam", "cpu"),
        ("lazy_adam", "mirrored"),
        ("lion", "mirrored"),
        *(
            pytest.param(name, strategy, marks=pytest.mark.slow)
            for name, strategy in (("adam", "mirrored"), ("lazy_adam", "cpu"), ("lion", "cpu"))
        ),
    ],
)
def test_a_skipped_update_leaves_no_trace(name, strategy, poisoned, records, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run_dir = train(records, tmp_path, name, strategy=strategy, non_finite="skip")
    assert runs.finished(run_dir)["skipped"] == 2  # once an epoch
    assert caplog.text.count("it comes from example train-7; the update was skipped") == 2
    last = arrays(run_dir)
    assert all(np.isfinite(array).all() for array in last.values() if array.dtype.kind == "f")
    assert next(int(a) for n, a in last.items() if n.startswith("optimizer/") and "iteration" in n) == 10


def test_updates_that_are_skipped_now_and_then_add_up_to_no_alarm(poisoned, records, tmp_path):
    run_dir = train(records, tmp_path, non_finite="skip", steps_per_call=1, epochs=25, patience=25)
    assert runs.finished(run_dir)["skipped"] == 25 > loop.MOST_SKIPPED


def test_a_scaled_gradient_that_overflows_is_loss_scalings_own_business(tmp_path, monkeypatch):
    scaled = functools.partial(custom_optimizers.LossScaleOptimizer, initial_scale=2.0**40)
    monkeypatch.setattr(custom_optimizers, "LossScaleOptimizer", scaled)
    config = tiny.config("image", tmp_path, precision="mixed_float16", steps_per_call=1)
    lines = read(loop.train(config, tiny.records_dir("image", tmp_path)))
    assert not np.isfinite([line["gradient_norm"] for line in lines if line["split"] == "train"]).all()


def test_a_scaled_gradient_that_no_scale_makes_finite_stops_the_run(broken, records, tmp_path, monkeypatch):
    scaled = functools.partial(custom_optimizers.LossScaleOptimizer, initial_scale=1.0)
    monkeypatch.setattr(custom_optimizers, "LossScaleOptimizer", scaled)
    with pytest.raises(UserError, match=r"the gradient is not finite at update \d+; the batch is .*train-7\b"):
        train(records, tmp_path, precision="mixed_float16", steps_per_call=1)


@pytest.mark.parametrize(("strategy", "jit"), [("cpu", False), ("cpu", True), ("mirrored", False)])
def test_a_gradient_inside_a_call_is_found_where_it_arises(strategy, jit, broken, records, tmp_path):
    told = []
    for calls in (1, 50):
        with pytest.raises(
            UserError, match=r"the gradient is not finite at update \d+; the batch is .*train-7\b"
        ) as raised:
            train(records, tmp_path / str(calls), "lazy_adam", steps_per_call=calls, strategy=strategy, jit=jit)
        told.append(str(raised.value).split(": ", 1)[1])
    assert told[0] == told[1]


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_goes_on_without_the_update_of_such_a_gradient(policy, broken, records, tmp_path):
    run_dir = train(records, tmp_path, non_finite=policy, steps_per_call=2, epochs=3)
    outcome = runs.finished(run_dir)
    assert (outcome["skipped"], outcome["left_out"]) == ((3, 0) if policy == "skip" else (0, 6))


def test_each_skipped_update_of_a_call_is_told(records, tmp_path, monkeypatch, caplog):
    def poison(*arguments):
        rows = prepare(*arguments)
        target = rows.target.copy()
        target[[1, 30, 95]] = np.nan
        return dataclasses.replace(rows, target=target)

    monkeypatch.setattr(loop, "prepare", poison)
    with caplog.at_level(logging.WARNING):
        run_dir = train(records, tmp_path, non_finite="skip", steps_per_call=50, epochs=1, batch_size=4)
    assert runs.finished(run_dir)["skipped"] == 3
    for row in (1, 30, 95):
        assert f"it comes from example train-{row}; the update was skipped" in caplog.text


def test_updates_in_a_row_are_counted_within_a_call():
    standing = Standing()
    for made, skipped in ((1, True), (1, True), (5, True), (1, True), (3, False), (1, True)):
        standing.count_skipped(skipped, made)
    assert (standing.skipped, standing.skipped_in_a_row) == (5, 1)
    standing = Standing(skipped_in_a_row=2)
    standing.count_skipped(True, 5)
    assert standing.skipped_in_a_row == 1


def test_skipping_does_not_change_what_is_finite(records, tmp_path):
    plain, guarded = train(records, tmp_path / "a"), train(records, tmp_path / "b", non_finite="skip")
    for (name, one), other in zip(arrays(plain).items(), arrays(guarded).values(), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_rolled_back_a_run_goes_on_without_the_updates_of_that_call_and_again_the_same(poisoned, records, tmp_path):
    ends = []
    for root in ("a", "b"):
        run_dir = train(records, tmp_path / root, non_finite="rollback", steps_per_call=2, epochs=3)
        ends.append(arrays(run_dir))
        assert runs.finished(run_dir)["left_out"] == 6
        steps = [line["step"] for line in read(run_dir) if line["split"] == "train"]
        assert steps == sorted(set(steps))
        assert all(np.isfinite(array).all() for array in ends[-1].values() if array.dtype.kind == "f")
    for one, other in zip(*map(dict.values, ends), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_weights_that_have_left_all_bounds_end_the_run_under_every_policy(policy, records, tmp_path):
    with pytest.raises(UserError, match=r"lower --optimizer\.learning-rate"):
        train(records, tmp_path, "sgd", 1e18, non_finite=policy, epochs=50, patience=50)
    run_dir = runs.newest_run(tmp_path / "runs/tiny-recommendation")
    for path in checkpoints.listed(run_dir / "checkpoints"):
        weights = {n: a for n, a in checkpoints.arrays(path).items() if n.startswith("model/")}
        assert all(np.isfinite(array).all() for array in weights.values() if array.dtype.kind == "f")
