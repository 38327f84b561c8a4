"""Claims about the measured execution plan."""

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest

from models.analysis import load
from models.spec import spec_of
from pipeline import checkpoints, runs
from pipeline.training import loop, plan
from pipeline.training.plan import Trial
from pipeline.training.rows import Column, Rows, prepare
from pipeline.training.step import Outcome
from pipeline.training.strategy import strategy_of
from tests import tiny

PLAIN = Trial(False, "float32", "memory", 10, 5.0, 0.7, "plain")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tiny.records_dir("recommendation", tmp_path_factory.mktemp("plan"))


def final(run_dir) -> list[np.ndarray]:
    return list(checkpoints.arrays(checkpoints.listed(run_dir / "checkpoints")[-1]).values())


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Measuring takes no seconds, and forgets the names of layers without a look at every object there is."""
    monkeypatch.setattr(plan, "TRIAL_SECONDS", 0.05)
    clear = functools.partial(keras.backend.clear_session, free_memory=False)
    monkeypatch.setattr(keras.backend, "clear_session", clear)


def test_the_fastest_that_agrees_is_chosen():
    fast = dataclasses.replace(PLAIN, jit=True, milliseconds=1.0, note="")
    assert plan.choose([PLAIN, fast]) == fast
    assert plan.choose([PLAIN, dataclasses.replace(fast, note="losses differ by 9.0%")]) == PLAIN
    assert plan.choose([PLAIN, dataclasses.replace(fast, milliseconds=None, note="does not run: no kernel")]) == PLAIN


def test_streaming_is_chosen_only_where_it_pays():
    streamed = dataclasses.replace(PLAIN, inputs="streamed", milliseconds=4.9, note="")
    assert plan.choose([PLAIN, streamed]) == PLAIN
    assert plan.choose([PLAIN, dataclasses.replace(streamed, milliseconds=4.0)]).inputs == "streamed"


def test_a_candidate_whose_losses_part_from_the_plain_ones_is_not_kept():
    near = dataclasses.replace(PLAIN, jit=True, loss=0.7001, note="")
    assert plan._compared(near, PLAIN).note == ""
    assert "differ" in plan._compared(dataclasses.replace(near, loss=0.72), PLAIN).note
    assert plan._compared(dataclasses.replace(near, loss=0.72, precision="mixed_bfloat16"), PLAIN).note == ""


def test_bfloat16_is_tried_only_where_it_is_allowed_and_xla_only_where_shapes_are_fixed():
    config = tiny.config("recommendation", "unused")
    fixed = Rows({}, np.zeros(2))
    ragged = Rows({"tokens": Column(np.zeros(3), np.array([0, 1, 3]))}, np.zeros(2))
    assert [(t.jit, t.precision) for t in plan.candidates(config.train, fixed)] == [
        (False, "float32"),
        (True, "float32"),
    ]
    allowed = dataclasses.replace(config.train, allow_bfloat16=True)
    assert [(t.jit, t.precision) for t in plan.candidates(allowed, ragged)] == [
        (False, "float32"),
        (False, "mixed_bfloat16"),
    ]
    for strategy in ("mirrored", "multi_worker", "tpu"):  # of one device, too: --train.jit is refused there
        assert all(not t.jit for t in plan.candidates(dataclasses.replace(allowed, strategy=strategy), fixed))


def test_measuring_never_changes_the_trained_weights_and_its_options_repeat_the_run(records, tmp_path):
    config = tiny.config("recommendation", tmp_path / "a", plan="measured")
    measured = loop.train(config, records)
    chosen = json.loads((measured / "plan.json").read_text())["chosen"]
    same = {name: chosen[name] for name in ("jit", "precision", "inputs", "steps_per_call")}
    given = loop.train(tiny.config("recommendation", tmp_path / "b", plan="given", **same), records)
    for one, other in zip(final(measured), final(given), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_plan_is_measured_once_for_a_run_and_taken_from_the_cache_by_the_next(records, tmp_path, monkeypatch):
    config = tiny.config("recommendation", tmp_path, plan="measured")
    first = loop.train(config, records)
    monkeypatch.setattr(plan, "measure", lambda *_: pytest.fail("measured again"))
    (first / "training.json").unlink()  # unfinished again: it resumes
    assert loop.train(config, records) == first
    fresh = dataclasses.replace(config, run=dataclasses.replace(config.run, fresh=True))
    second = loop.train(fresh, records)
    assert second != first
    assert (second / "plan.json").read_text() == (first / "plan.json").read_text()


def test_a_plan_times_calls_that_follow_each_other_as_the_loop_makes_them():
    made = []

    class Batches:
        calls = 4

        def counts(self, at):
            return [3, 1] if at % 7 == 0 else [7 - at % 7]

        def part(self, at, count):
            made.append((at, count))
            return count

    def steps(count, alone):
        assert alone == (count == 1)
        return Outcome(0.5, 0.0, count, False, None)

    loss, pace, slow = plan._timed(steps, Batches())
    assert loss == 0.5
    assert 0 < pace <= slow
    assert made[:5] == [(0, 3), (4, 3), (7, 3), (11, 3), (14, 3)]


@pytest.mark.parametrize("per_epoch", [1, 2, 40])
def test_losses_are_compared_over_updates_that_know_of_gradients_however_short_an_epoch_is(per_epoch):
    class Batches:
        calls = min(plan.COMPARED, per_epoch)

        def counts(self, at):
            return [min(self.calls, per_epoch - at % per_epoch)]

        def part(self, at, count):
            return at, count

    def steps(part, alone):
        at, count = part
        return Outcome(float(at), 0.0, count, at == 10**9, None)

    asked = []
    plan._timed(lambda part, alone: asked.append(part) or steps(part, alone), Batches())
    first = next(i for i, _ in enumerate(asked) if sum(count for _, count in asked[: i + 1]) >= plan.COMPARED - 1)
    assert plan._timed(steps, Batches())[0] == np.mean([at for at, _ in asked[: first + 1]])


def test_a_candidate_that_is_not_finite_is_not_kept():
    bad = dataclasses.replace(PLAIN, jit=True, loss=float("nan"), note="")
    assert plan._compared(bad, PLAIN).note == "not finite"


def test_an_update_that_sigterm_may_cut_off_is_told(records, tmp_path, monkeypatch, caplog):
    slow = [dataclasses.replace(PLAIN, milliseconds=2000.0)]
    monkeypatch.setattr(plan, "measure", lambda *_: slow)
    loop.train(tiny.config("recommendation", tmp_path, plan="measured"), records)
    assert "one update takes 2.0 s: SIGTERM may cut it off" in caplog.text


def test_one_call_lasts_half_a_second_and_has_so_many_bytes_of_rows_at_the_most(records, tmp_path, monkeypatch):
    config = tiny.config("recommendation", tmp_path, plan="measured")
    spec, analysis, strategy = spec_of(config.task), load(records, config.task), strategy_of("cpu")
    rows = prepare(records, config, spec, analysis, tmp_path / "unused")
    for trial in plan.measure(config, rows, spec, analysis, strategy):
        assert trial.steps_per_call == 1 or trial.steps_per_call * trial.milliseconds <= 500
    monkeypatch.setattr(plan, "MOST_BYTES", 3 * rows.row_bytes * config.train.batch_size)
    for trial in plan.measure(config, rows, spec, analysis, strategy):
        assert trial.steps_per_call == 3
    assert runs.newest_run(config.runs_root) is None
