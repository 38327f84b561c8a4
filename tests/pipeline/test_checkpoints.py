"""Claims about checkpoints: bit for bit, dropout's seeds too, and never a silent start from scratch."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.analysis import load
from pipeline import checkpoints, manifest, runs
from pipeline.errors import Corrupt, UserError
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


class Pair:
    """A model with dropout and batch norm, its optimizer, and an update of both."""

    def __init__(self, seed: int = 0, units: int = 3):
        keras.utils.set_random_seed(seed)
        layers = keras.layers
        self.model = keras.Sequential(
            [keras.Input([4]), layers.Dense(units), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(1)]
        )
        self.optimizer = keras.optimizers.Adam(0.1)
        self.optimizer.build(self.model.trainable_variables)

    def update(self, times: int = 1) -> None:
        x = tf.constant(np.random.default_rng(0).normal(size=(8, 4)), tf.float32)
        for _ in range(times):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self.model(x, training=True) ** 2 + self.model(x, training=True))
            variables = self.model.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)

    def state(self) -> list[np.ndarray]:
        return [np.asarray(v) for v in (*self.model.variables, *self.optimizer.variables)]

    def save(self, root: Path, step: int, **facts) -> Path:
        return checkpoints.save(root, step, self.model, self.optimizer, facts)

    def restore(self, root: Path):
        return checkpoints.restore(root, self.model, self.optimizer)


def assert_same(one: list[np.ndarray], two: list[np.ndarray]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def saved_at(root: Path, *steps: int) -> dict[int, list[np.ndarray]]:
    """Checkpoints after so many updates, and the state in each."""
    pair, states = Pair(), {}
    for step in steps:
        pair.update()
        pair.save(root, step, note=f"at {step}")
        states[step] = pair.state()
    return states


def test_a_restored_pair_goes_on_bit_for_bit_dropout_included(tmp_path):
    pair = Pair()
    pair.update(3)
    pair.save(tmp_path, 3, standing={"best_score": 0.1 + 0.2})
    other = Pair(seed=9)
    facts = other.restore(tmp_path)
    assert (facts["step"], facts["standing"]) == (3, {"best_score": 0.1 + 0.2})
    assert_same(other.state(), pair.state())
    pair.update(5)
    other.update(5)
    assert_same(other.state(), pair.state())


def test_the_state_of_dropout_is_in_the_checkpoint(tmp_path):
    pair = Pair()
    seeds = [np.asarray(v) for v in pair.model.variables if "seed" in v.path]
    assert seeds
    pair.update()
    pair.save(tmp_path, 1)
    moved = [np.asarray(v) for v in pair.model.variables if "seed" in v.path]
    assert not np.array_equal(seeds, moved)
    other = Pair()
    other.restore(tmp_path)
    assert_same([np.asarray(v) for v in other.model.variables if "seed" in v.path], moved)


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path):
    assert Pair().restore(tmp_path) is None
    assert Pair().restore(tmp_path / "nowhere") is None


def test_the_newest_is_restored(tmp_path):
    states = saved_at(tmp_path, 9, 10, 100)
    pair = Pair(seed=1)
    assert pair.restore(tmp_path)["note"] == "at 100"
    assert_same(pair.state(), states[100])
    assert [path.name for path in checkpoints.listed(tmp_path)] == ["000000009", "000000010", "000000100"]


DATA = "state.data-00000-of-00001"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def emptied(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


HARMS = {
    "cut data": lambda directory: os.truncate(directory / DATA, 10),
    "a flipped bit": lambda directory: flip(directory / DATA),
    "no index": lambda directory: (directory / "state.index").unlink(),
    "an empty folder": emptied,
    "no manifest": lambda directory: (directory / manifest.NAME).unlink(),
    "a broken manifest": lambda directory: (directory / manifest.NAME).write_text("{"),
    "a changed fact": lambda directory: (directory / manifest.NAME).write_text(
        (directory / manifest.NAME).read_text().replace("at 2", "at 7")
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, harm):
    states = saved_at(tmp_path, 1, 2)
    HARMS[harm](tmp_path / "000000002")
    pair = Pair(seed=1)
    with caplog.at_level(logging.WARNING):
        assert pair.restore(tmp_path)["note"] == "at 1"
    assert_same(pair.state(), states[1])
    assert "checkpoint 000000002 passed over" in caplog.text


@pytest.mark.parametrize("harm", HARMS)
def test_when_all_are_damaged_it_raises_and_does_not_start_from_scratch(tmp_path, harm):
    saved_at(tmp_path, 1, 2)
    HARMS["a flipped bit"](tmp_path / "000000001")
    HARMS[harm](tmp_path / "000000002")
    with pytest.raises(Corrupt, match="none of the 2 checkpoints is whole") as raised:
        Pair().restore(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_checkpoint_is_replaced_when_the_run_comes_to_its_step_again(tmp_path, harm):
    states = saved_at(tmp_path, 1, 2)
    HARMS[harm](tmp_path / "000000002")
    pair = Pair(seed=1)
    pair.restore(tmp_path)
    pair.update()
    pair.save(tmp_path, 2, note="again")
    other = Pair(seed=2)
    assert other.restore(tmp_path)["note"] == "again"
    assert_same(other.state(), states[2])
    assert sorted(os.listdir(tmp_path)) == ["000000001", "000000002"]


def test_a_whole_checkpoint_of_the_step_is_kept_as_it_is(tmp_path):
    saved_at(tmp_path, 1)
    before = (tmp_path / "000000001" / manifest.NAME).read_bytes()
    Pair(seed=5).save(tmp_path, 1, note="another")
    assert (tmp_path / "000000001" / manifest.NAME).read_bytes() == before


def test_a_checkpoint_of_another_model_does_not_fit_and_says_so_in_one_line(tmp_path):
    made = Pair(units=5).save(tmp_path, 1)
    pair = Pair()
    with pytest.raises(Corrupt, match="does not fit the model") as raised:
        checkpoints.read(made, pair.model, pair.optimizer)
    assert str(made) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_model_can_be_read_alone_but_not_with_another_optimizer(tmp_path):
    pair = Pair()
    pair.update()
    made = pair.save(tmp_path, 1)
    other = Pair(seed=3)
    checkpoints.read(made, other.model)
    assert_same([np.asarray(v) for v in other.model.variables], [np.asarray(v) for v in pair.model.variables])
    plain = keras.optimizers.SGD(0.1)
    plain.build(other.model.trainable_variables)
    with pytest.raises(Corrupt, match="does not fit the model"):
        checkpoints.read(made, other.model, plain)


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(2, "000000001", [1, 4, 5]), (2, "000000005", [4, 5]), (1, "000000003", [3, 5]), (9, None, [1, 2, 3, 4, 5])],
)
def test_prune_keeps_the_newest_and_the_best(tmp_path, keep, best, left):
    saved_at(tmp_path, 1, 2, 3, 4, 5)
    checkpoints.prune(tmp_path, keep, best)
    assert sorted(os.listdir(tmp_path)) == [f"{step:09d}" for step in left]
    for path in checkpoints.listed(tmp_path):
        manifest.verify(path)


def test_a_writer_tidies_up_what_a_killed_process_left_whatever_its_host_and_number(tmp_path):
    saved_at(tmp_path, 1)
    for name in (f".tmp-{socket.gethostname()}-{os.getpid()}-0a", ".tmp-elsewhere-1-0b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / DATA).touch()
    with checkpoints.Writer(tmp_path, 1):
        assert os.listdir(tmp_path) == ["000000001"]


@pytest.mark.parametrize("step", ["_describe", "_write_synced", "_rename"])
def test_a_write_that_is_stopped_leaves_the_older_checkpoint(tmp_path, monkeypatch, step):
    states = saved_at(tmp_path, 1)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manifest, step, stop)
        with pytest.raises(KeyboardInterrupt):
            Pair(seed=1).save(tmp_path, 2)
    pair = Pair(seed=2)
    assert pair.restore(tmp_path)["note"] == "at 1"
    assert_same(pair.state(), states[1])
    assert os.listdir(tmp_path) == ["000000001"]


def test_a_disk_that_fills_up_is_told_with_the_path_and_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    saved_at(tmp_path, 1)

    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, f"{tmp_path}/state_temp/part-0; No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tf.raw_ops, "SaveV2", full)
        with pytest.raises(UserError, match=f"Cannot write {tmp_path}/000000002: No space left on device"):
            Pair().save(tmp_path, 2)
    assert Pair().restore(tmp_path)["note"] == "at 1"


KILLED = """
import os, signal, sys
from pathlib import Path
import keras, tensorflow as tf
from pipeline import checkpoints, manifest
model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3)])
optimizer = keras.optimizers.Adam(0.1)
optimizer.build(model.trainable_variables)
checkpoints.save(Path(sys.argv[1]), 1, model, optimizer, {"note": "at 1"})
write = tf.raw_ops.SaveV2
def killed(**arguments):
    write(**arguments)
    os.kill(os.getpid(), signal.SIGKILL)
tf.raw_ops.SaveV2 = killed
checkpoints.save(Path(sys.argv[1]), 2, model, optimizer, {"note": "at 2"})
"""


@pytest.mark.chaos
def test_a_real_kill_in_the_middle_of_a_write_leaves_the_older_checkpoint(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    draft, older = sorted(os.listdir(tmp_path))
    assert draft.startswith(".tmp-")
    assert os.listdir(tmp_path / draft)
    assert older == "000000001"
    manifest.sweep(tmp_path)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3)])
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    assert checkpoints.restore(tmp_path, model, optimizer)["note"] == "at 1"


def test_the_best_model_of_a_finished_run_has_the_weights_of_its_best_epoch(tmp_path):
    from models.spec import spec_of

    config = tiny.config("sentiment", tmp_path)
    analysis = load(tiny.records_dir("sentiment", tmp_path), "sentiment")
    keras.utils.set_random_seed(3)
    model = spec_of("sentiment").build(config.model, analysis)
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    for step in (6, 12):
        checkpoints.save(tmp_path / "run" / "checkpoints", step, model, optimizer, {})
        model.trainable_variables[0].assign_add(keras.ops.ones_like(model.trainable_variables[0]))
    with pytest.raises(UserError, match="is unfinished"):
        checkpoints.best_model(tmp_path / "run", config, analysis)
    manifest.write_file(tmp_path / "run" / "training.json", '{"best_checkpoint": "000000006"}')
    assert runs.finished(tmp_path / "run")
    best = checkpoints.best_model(tmp_path / "run", config, analysis)
    np.testing.assert_array_equal(best.trainable_variables[0] + 1.0 + 1.0, model.trainable_variables[0])
