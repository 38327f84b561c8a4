"""Claims about what a run goes on from: its lock, its plan, its checkpoints in time, and a disk that is full for a
while."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import socket

import pytest

from pipeline import checkpoints, runs
from pipeline.errors import CANNOT_WRITE, CHANGED, Corrupt, UserError
from pipeline.training import loop
from pipeline.training.journal import Journal, read
from tests import faults, tiny
from tests.pipeline.training.test_loop import StopAfter, final


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return tiny.records_dir("recommendation", tmp_path_factory.mktemp("resuming"))


def stopped(config, records, monkeypatch, after: int = 1):
    """The directory of a run that SIGTERM stopped after so many lines of the log."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Stopping", lambda _: contextlib.nullcontext(StopAfter(after)))
        with pytest.raises(UserError, match="stopped by SIGTERM"):
            loop.train(config, records)
    return runs.newest_run(config.runs_root)


def test_a_run_is_locked_while_it_trains(records, tmp_path, monkeypatch):
    config, refused = tiny.config("recommendation", tmp_path), []
    run = loop.Loop.run

    def second(self, stopping):
        monkeypatch.setattr(loop.Loop, "run", run)
        with pytest.raises(UserError, match="is being trained by process") as raised:
            loop.train(config, records)
        refused.append(raised.value.code)
        run(self, stopping)

    monkeypatch.setattr(loop.Loop, "run", second)
    loop.train(config, records)
    assert refused == [CHANGED]


def test_checkpoints_come_by_time_as_well_and_name_what_they_are_of(records, tmp_path):
    config = tiny.config("recommendation", tmp_path, steps_per_call=2, checkpoint_seconds=0.0, keep=99)
    run_dir = loop.train(config, records)
    found = checkpoints.listed(run_dir / "checkpoints")
    assert [int(path.name) for path in found] == [2, 4, 6, 8, 10, 12]
    facts = json.loads((found[0] / "MANIFEST.json").read_text())
    assert facts["run"] == json.loads((run_dir / "config.json").read_text())
    assert facts["plan"]["steps_per_call"] == 2


def test_the_chiefs_clock_alone_says_when_a_checkpoint_is_due(records, tmp_path, monkeypatch):
    """Two clocks would now and then disagree; then one process would wait for what the other does not do."""
    asked, timed = [], tiny.config("recommendation", tmp_path, steps_per_call=2, checkpoint_seconds=0.0, keep=99)
    monkeypatch.setattr(loop.cluster, "anyone", lambda strategy, flag: asked.append(flag) or flag)
    advance = loop.Loop._advance

    def as_worker(self):
        self.chief = False
        advance(self)
        self.chief = True

    monkeypatch.setattr(loop.Loop, "_advance", as_worker)
    run_dir = loop.train(timed, records)
    ends = {step for step in (6, 12)}
    assert {int(path.name) for path in checkpoints.listed(run_dir / "checkpoints")} == ends
    assert not any(asked)


def test_a_checkpoint_of_another_run_is_refused(records, tmp_path, monkeypatch):
    config = tiny.config("recommendation", tmp_path, steps_per_call=2)
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, name="other"))
    stranger = stopped(dataclasses.replace(other, train=dataclasses.replace(other.train, seed=9)), records, monkeypatch)
    run_dir = stopped(config, records, monkeypatch)
    shutil.rmtree(run_dir / "checkpoints")
    shutil.copytree(stranger / "checkpoints", run_dir / "checkpoints")
    with pytest.raises(Corrupt, match=r"checkpoint 0+2 is of another run \(.*seed.*\): remove it, or pass --fresh"):
        loop.train(config, records)


def test_training_again_leaves_alone_what_another_command_makes_of_a_finished_run(records, tmp_path):
    config = tiny.config("recommendation", tmp_path)
    draft = loop.train(config, records) / f".tmp-{socket.gethostname()}-{os.getpid()}-export"
    draft.mkdir()
    loop.train(config, records)
    assert draft.is_dir()


@pytest.mark.parametrize("damage", ["gone", "edited", "cut"])
def test_a_run_does_not_go_on_by_another_plan(damage, records, tmp_path, monkeypatch):
    config = tiny.config("recommendation", tmp_path, steps_per_call=2)
    path = stopped(config, records, monkeypatch) / "plan.json"
    text = path.read_text()
    if damage == "gone":
        path.unlink()
    else:
        path.write_text(text.replace('"jit": false', '"jit": true') if damage == "edited" else text[:40])
    with pytest.raises(Corrupt, match=r"plan\.json .*restore it from a copy|plan\.json is gone") as raised:
        loop.train(config, records)
    assert "--fresh" in str(raised.value)
    path.write_text(text)
    loop.train(config, records)


def test_what_killed_ones_left_goes_before_rows_are_prepared(records, tmp_path, monkeypatch):
    config = tiny.config("recommendation", tmp_path)
    run_dir = stopped(config, records, monkeypatch)
    drafts = [run_dir / ".tmp-elsewhere-1-0a", config.runs_root / f".tmp-{socket.gethostname()}-999999999-0b"]
    for draft in drafts:
        draft.mkdir()
    prepare = loop.prepare

    def looked(*arguments):
        assert not drafts[0].exists()
        return prepare(*arguments)

    monkeypatch.setattr(loop, "prepare", looked)
    loop.train(config, records)
    loop.train(dataclasses.replace(config, run=dataclasses.replace(config.run, fresh=True)), records)
    assert not drafts[1].exists()


def test_rows_on_disk_give_the_weights_of_rows_in_memory_and_go_with_the_end_of_the_run(records, tmp_path, monkeypatch):
    held = loop.train(tiny.config("recommendation", tmp_path / "a"), records)
    config = tiny.config("recommendation", tmp_path / "b", memory_limit=0)
    run_dir = stopped(config, records, monkeypatch)
    assert (run_dir / loop.PREPARED).is_dir()
    assert json.loads((run_dir / "plan.json").read_text())["chosen"]["inputs"] == "streamed"
    assert loop.train(config, records) == run_dir
    assert final(run_dir) == final(held)
    assert not (run_dir / loop.PREPARED).exists()


def filling(monkeypatch, lines: range):
    """A disk that is full for some of the writes of the log."""
    drain, writes = Journal._drain, iter(range(10**6))

    def refuse(self):
        if next(writes) in lines:
            faults.ERRORS["ENOSPC"]("metrics.jsonl")
        drain(self)

    monkeypatch.setattr(Journal, "_drain", refuse)


def test_a_disk_that_is_full_for_a_while_costs_the_log_no_line(records, tmp_path, monkeypatch, caplog):
    whole = loop.train(tiny.config("recommendation", tmp_path / "a", steps_per_call=1), records)
    filling(monkeypatch, range(2, 9))
    with caplog.at_level(logging.WARNING):
        run_dir = loop.train(tiny.config("recommendation", tmp_path / "b", steps_per_call=1), records)
    assert "metrics.jsonl waits in memory for the disk" in caplog.text
    logs = [[(line["split"], line["step"]) for line in read(run)] for run in (run_dir, whole)]
    assert logs[0] == logs[1]
    assert final(run_dir) == final(whole)


def test_a_disk_that_stays_full_for_the_log_ends_the_run_in_one_line_and_it_goes_on_later(
    records, tmp_path, monkeypatch
):
    config = tiny.config("recommendation", tmp_path / "b", steps_per_call=1, epochs=9, patience=9)
    with monkeypatch.context() as patch:
        filling(patch, range(3, 10**6))
        with pytest.raises(UserError, match="No space left on device") as raised:
            loop.train(config, records)
    assert raised.value.code == CANNOT_WRITE
    assert "\n" not in str(raised.value)
    run_dir = loop.train(config, records)
    assert [line["step"] for line in read(run_dir) if line["split"] == "train"] == list(range(1, 55))
