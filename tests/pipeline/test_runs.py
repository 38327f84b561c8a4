"""Claims about a run's directory: the same command goes on, a changed one is refused with what changed."""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import manifest, runs
from pipeline.config import Config, Data, to_json
from pipeline.errors import CHANGED, DATA, MISSING, Corrupt, UserError
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


def description(config: Config, records: str = "records/sentiment/0123456789abcdef", code: str = "c0de") -> dict:
    """As `describe` gives it."""
    fingerprint = {"records": Path(records).name, "code": code, "versions": {"keras": "3.15.1"}}
    return {"preset": "tiny", "config": to_json(config), "records": records, "fingerprint": fingerprint}


def opened(config: Config, **other) -> Path:
    return runs.open_run(config, description(config, **other))


def changed(config: Config, section: str, **values) -> Config:
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: part})


@pytest.fixture
def config(tmp_path) -> Config:
    return tiny.config("sentiment", tmp_path)


def test_the_first_run_is_number_1_and_holds_its_settings(config):
    run_dir = opened(config)
    assert run_dir == config.runs_root / "0001"
    assert json.loads((run_dir / "config.json").read_text()) == description(config)
    assert os.listdir(config.runs_root) == ["0001"]


def test_the_same_settings_go_on_in_the_same_directory_finished_or_not(config):
    run_dir = opened(config)
    assert opened(config) == run_dir
    (run_dir / "training.json").write_text("{}")
    assert opened(config) == run_dir


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("optimizer", {"learning_rate": 0.02}, "optimizer.learning_rate: 0.01 -> 0.02"),
        ("model", {"units": 5}, "model.units: 4 -> 5"),
        ("train", {"epochs": 9}, "train.epochs: 2 -> 9"),
        ("data", {"limit": 10}, "data.limit: None -> 10"),
        ("optimizer", {"arguments": {"beta_1": 0.8}}, "optimizer.arguments.beta_1: None -> 0.8"),
    ],
)
def test_changed_settings_are_refused_with_what_changed(config, section, values, line):
    run_dir = opened(config)
    with pytest.raises(UserError) as raised:
        opened(changed(config, section, **values))
    assert str(raised.value) == (
        f"{run_dir} was made with other settings ({line}): pass --fresh to start a new run beside it, or another "
        "--run.name."
    )
    assert raised.value.code == CHANGED


def test_all_changes_are_told_at_once(config):
    opened(config)
    both = changed(changed(config, "train", batch_size=8, seed=3), "optimizer", name="sgd")
    with pytest.raises(
        UserError, match=r"optimizer.name: adam -> sgd; train.batch_size: 16 -> 8; train.seed: 0 -> 3\)"
    ):
        opened(both)


@pytest.mark.parametrize(
    ("other", "line"),
    [({"code": "beef"}, "code: c0de -> beef"), ({"records": "records/x/9999"}, "records: 0123456789abcdef -> 9999")],
)
def test_other_code_and_other_records_are_refused(config, other, line):
    opened(config)
    with pytest.raises(UserError, match=line):
        opened(config, **other)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("data", {"path": Path("/elsewhere"), "download": True}),
        ("data", {"runner": "FlinkRunner", "runner_options": ("--parallelism=2",)}),
        ("train", {"tensorboard": True, "keep": 9}),
        ("gate", {"at_least": {"accuracy": 0.99}, "min_examples": 1}),
        ("run", {"model": "another", "cache": Path("/cache")}),
    ],
)
def test_where_data_lies_and_what_the_gate_demands_may_differ(config, section, values):
    run_dir = opened(config)
    assert opened(changed(config, section, **values)) == run_dir


def test_records_moved_to_another_folder_are_the_same_records(config):
    assert opened(config) == opened(config, records="/elsewhere/0123456789abcdef")


def test_the_records_of_a_run_are_found_from_any_folder(tmp_path, monkeypatch):
    described = {"records": "records/digits/0123"}
    made = tmp_path / "project" / "records" / "digits" / "0123"
    made.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert runs.records_of(described, tmp_path / "project") == made
    assert runs.records_of({"records": "/elsewhere/records/digits/0123"}, tmp_path / "project") == made
    assert runs.records_of({"records": "/elsewhere/0456"}, tmp_path / "project") == Path("/elsewhere/0456")


def test_fresh_makes_the_next_number_and_keeps_the_old(config):
    first = opened(config)
    (first / "training.json").write_text('{"steps": 1}')
    fresh = changed(changed(config, "run", fresh=True), "optimizer", learning_rate=0.5)
    assert opened(fresh) == config.runs_root / "0002"
    assert opened(fresh) == config.runs_root / "0003"
    assert runs.result(first) == {"steps": 1}
    assert opened(changed(fresh, "run", fresh=False)) == config.runs_root / "0003"
    assert runs.existing_run(config) == config.runs_root / "0003"


def test_runs_of_other_names_do_not_meet(config):
    assert opened(config).parent != opened(changed(config, "run", name="other")).parent


def test_a_number_is_never_given_twice(config):
    for name in ("0007", "notes", "00008"):
        (config.runs_root / name / "left").mkdir(parents=True)
    assert runs.newest_run(config.runs_root) is None
    assert opened(config).name == "0008"


def test_of_two_processes_that_start_at_once_the_later_finds_the_run_of_the_first(config, monkeypatch):
    rename = Path.rename

    def late(source, destination):
        destination.mkdir()
        manifest.write_file(destination / "config.json", json.dumps(description(config)))
        return rename(source, destination)

    monkeypatch.setattr(Path, "rename", late)
    assert opened(config) == config.runs_root / "0001"
    assert os.listdir(config.runs_root) == ["0001"]


def test_a_disk_that_fills_up_leaves_no_run(config, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "_write_synced", full)
    with pytest.raises(OSError, match="No space left"):
        opened(config)
    assert os.listdir(config.runs_root) == []


@pytest.mark.parametrize("name", ["config.json", "training.json"])
def test_a_broken_file_of_the_run_is_one_line_with_its_path(config, name):
    run_dir = opened(config)
    (run_dir / name).write_text("{")
    with pytest.raises(Corrupt, match=name) as raised:
        opened(config) if name == "config.json" else runs.result(run_dir)
    assert str(run_dir / name) in str(raised.value)
    assert raised.value.code == DATA


def test_a_name_without_a_run_is_missing(config):
    with pytest.raises(UserError, match="holds no run yet: run `minibatch train`") as raised:
        runs.existing_run(config)
    assert raised.value.code == MISSING


def test_an_unfinished_run_has_no_result(config):
    run_dir = opened(config)
    assert runs.result(run_dir) is None
    with pytest.raises(UserError, match="is unfinished: `minibatch train`") as raised:
        runs.finished(run_dir)
    assert raised.value.code == CHANGED
    manifest.write_file(run_dir / "training.json", '{"steps": 3}')
    assert runs.finished(run_dir) == {"steps": 3}


HOLDER = """
import sys, time
from pathlib import Path
from pipeline import runs
with runs.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_that_another_process_trains_is_refused_with_its_pid_until_that_is_killed(config):
    run_dir = opened(config)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, run_dir], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"is being trained by process {other.pid}; wait for it") as raised:
                with runs.locked(run_dir):
                    pytest.fail("locked twice")
            assert raised.value.code == CHANGED
        finally:
            other.send_signal(signal.SIGKILL)
            other.wait()
    with runs.locked(run_dir):
        assert (run_dir / ".lock").read_text() == str(os.getpid())


def test_the_lock_is_released_after_an_error(config):
    run_dir = opened(config)
    with pytest.raises(ValueError, match="stop"):
        with runs.locked(run_dir):
            raise ValueError("stop")
    with open(run_dir / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_description_names_records_code_and_versions(config, tmp_path):
    described = runs.describe(config, "tiny", tmp_path / "records" / "fedcba9876543210")
    assert described["fingerprint"]["records"] == "fedcba9876543210"
    assert described["fingerprint"]["code"] == manifest.code_fingerprint(*runs.CODE)
    assert described["fingerprint"]["versions"].keys() == {"tensorflow", "keras", "numpy"}
    assert described["preset"] == "tiny"
    assert json.loads(json.dumps(described)) == described
    assert runs.open_run(config, described) == runs.open_run(config, described)


@pytest.mark.parametrize("place", runs.CODE)
def test_every_place_that_the_code_fingerprint_covers_is_there(place):
    assert (ROOT / place).exists()


def test_a_run_of_a_fold_is_refused_for_another_fold(config):
    fold = dataclasses.replace(config, data=Data(source="ml-100k", fold=1))
    opened(fold)
    with pytest.raises(UserError, match=r"data.fold: 1 -> 2"):
        opened(changed(fold, "data", fold=2))
