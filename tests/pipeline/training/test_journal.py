import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import manifest
from pipeline.training.journal import NAME, Journal, read


def fill(journal, steps):
    for step in steps:
        journal.write(
            step=step,
            epoch=1 + step // 4,
            split="train",
            loss=1 / (step + 1),
            learning_rate=0.1,
            gradient_norm=2.0,
            examples_per_second=9.0,
        )
        if step % 4 == 0:
            journal.write(step=step, epoch=step // 4, split="val", loss=0.5, accuracy=0.75)


def steps(run_dir, split="train"):
    return [line["step"] for line in read(run_dir) if line["split"] == split]


def event_steps(run_dir, split):
    """(tag, step) of every scalar in the event files of a split, read record by record."""
    from tensorflow.core.util.event_pb2 import Event

    found = []
    for path in sorted((run_dir / "tensorboard" / split).glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            found += [(value.tag, event.step) for value in event.summary.value]
            at += 12 + size + 4
    return found


def test_each_line_is_an_object_with_step_epoch_split_and_the_numbers(tmp_path):
    with Journal(tmp_path, tensorboard=False, resume_step=0) as journal:
        fill(journal, [4])
    first, second = (json.loads(line) for line in (tmp_path / NAME).read_text().splitlines())
    assert first == {
        "step": 4,
        "epoch": 2,
        "split": "train",
        "loss": 0.2,
        "learning_rate": 0.1,
        "gradient_norm": 2.0,
        "examples_per_second": 9.0,
    }
    assert second == {"step": 4, "epoch": 1, "split": "val", "loss": 0.5, "accuracy": 0.75}
    assert read(tmp_path) == [first, second]


def test_non_finite_values_are_valid_json_and_come_back_as_floats(tmp_path):
    with Journal(tmp_path, tensorboard=False, resume_step=0) as journal:
        journal.write(1, 1, "train", loss=math.nan, learning_rate=math.inf, gradient_norm=-math.inf)
    raw = (tmp_path / NAME).read_text()
    assert json.loads(raw, parse_constant=pytest.fail)["loss"] == "NaN"
    (line,) = read(tmp_path)
    assert math.isnan(line["loss"])
    assert (line["learning_rate"], line["gradient_norm"]) == (math.inf, -math.inf)
    with Journal(tmp_path, tensorboard=False, resume_step=1):
        assert (tmp_path / NAME).read_text() == raw


def test_resuming_at_a_checkpoint_leaves_no_duplicate_and_no_gap(tmp_path):
    with Journal(tmp_path, tensorboard=False, resume_step=0) as journal:
        fill(journal, range(1, 8))  # the checkpoint is of step 5
    with Journal(tmp_path, tensorboard=False, resume_step=5) as journal:
        assert steps(tmp_path) == [1, 2, 3, 4, 5]
        fill(journal, range(6, 11))
    assert steps(tmp_path) == list(range(1, 11))
    assert steps(tmp_path, "val") == [4, 8]


@pytest.mark.parametrize(
    "tail", ['{"step": 4, "ep', '{"step": 4, "epoch": 1, "split": "train"}', "\x00\x00\n", '"word"\n']
)
def test_a_half_written_last_line_is_cut_off(tmp_path, tail):
    with Journal(tmp_path, tensorboard=False, resume_step=0) as journal:
        fill(journal, range(1, 4))
    with open(tmp_path / NAME, "a") as file:
        file.write(tail)
    assert steps(tmp_path) == [1, 2, 3]
    with Journal(tmp_path, tensorboard=False, resume_step=4) as journal:
        fill(journal, [4])
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert [json.loads(line)["step"] for line in (tmp_path / NAME).read_text().splitlines()] == [1, 2, 3, 4, 4]


def test_cutting_replaces_the_file_in_one_step(tmp_path, monkeypatch):
    with Journal(tmp_path, tensorboard=False, resume_step=0) as journal:
        fill(journal, range(1, 4))
    monkeypatch.setattr(manifest.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Journal(tmp_path, tensorboard=False, resume_step=1)
    assert steps(tmp_path) == [1, 2, 3]


def test_an_epoch_validated_again_after_a_kill_is_logged_once(tmp_path):
    with Journal(tmp_path, tensorboard=False, resume_step=0) as journal:
        fill(journal, range(1, 5))
    with Journal(tmp_path, tensorboard=False, resume_step=4) as journal:
        journal.write(4, 1, "val", loss=0.5, accuracy=0.75)
        fill(journal, [5])
    assert steps(tmp_path, "val") == [4]
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


def test_a_killed_process_loses_no_line(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from pipeline.training.journal import Journal\n"
        "j = Journal(Path(sys.argv[1]), False, 0); j.write(1, 1, 'val', loss=1); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[3])
    assert done.returncode == -9
    assert steps(tmp_path, "val") == [1]


def test_sync_reaches_the_disk(tmp_path, monkeypatch):
    synced = []
    with Journal(tmp_path, tensorboard=False, resume_step=0) as journal:
        fill(journal, [1])
        monkeypatch.setattr("os.fsync", lambda _: synced.append((tmp_path / NAME).read_text().count("\n")))
        journal.sync()
    assert synced[0] == 1


def test_tensorboard_holds_the_same_steps_as_the_log_after_a_resumption(tmp_path):
    with Journal(tmp_path, tensorboard=True, resume_step=0) as journal:
        fill(journal, range(1, 8))
    with Journal(tmp_path, tensorboard=True, resume_step=5) as journal:
        fill(journal, range(6, 9))
    for split in ("train", "val"):
        expected = [
            (name, line["step"])
            for line in read(tmp_path)
            if line["split"] == split
            for name in line
            if name not in ("step", "epoch", "split")
        ]
        assert event_steps(tmp_path, split) == expected


def test_without_tensorboard_no_event_file_is_written(tmp_path):
    with Journal(tmp_path, tensorboard=False, resume_step=0) as journal:
        fill(journal, [1])
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


def test_reading_a_run_without_a_log_gives_nothing(tmp_path):
    assert read(tmp_path) == []
