"""Claims about checkpoints: bit for bit, dropout's seeds too, and never a silent start from scratch."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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

    def __init__(self, seed: int = 0, units: int = 3, name: str | None = None):
        keras.utils.set_random_seed(seed)
        layers = keras.layers
        hidden = [layers.Dense(units, name=name), layers.BatchNormalization(), layers.Dropout(0.5)]
        self.model = keras.Sequential([keras.Input([4]), *hidden, layers.Dense(1)])
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
        return checkpoints.write(root, step, checkpoints.snapshot(self.model, self.optimizer), facts)

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
    "cut index": lambda directory: os.truncate(directory / "state.index", 10),
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
    before = pair.state()
    with pytest.raises(Corrupt) as raised:
        checkpoints.read(made, pair.model, pair.optimizer)
    assert str(raised.value) == (
        f"{made} does not fit the model: expected model/0000/sequential/dense/kernel float32[4, 3], found "
        "model/0000/sequential/dense/kernel float32[4, 5]."
    )
    assert_same(pair.state(), before)


def test_a_model_of_other_layers_does_not_fit_though_all_shapes_agree(tmp_path):
    made = Pair().save(tmp_path, 1)
    pair = Pair(name="hidden")
    with pytest.raises(Corrupt, match=r"expected model/0000/sequential/hidden/kernel \S+ 3\], found .*/dense/kernel"):
        checkpoints.read(made, pair.model)


def test_a_smaller_or_larger_model_does_not_fit(tmp_path):
    small = keras.Sequential([keras.Input([4]), keras.layers.Dense(3)])
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([])
    made = checkpoints.write(tmp_path, 1, checkpoints.snapshot(small, optimizer), {})
    with pytest.raises(Corrupt, match=r"expected model/0002/sequential/batch_normalization/gamma .*, found nothing"):
        checkpoints.read(made, Pair().model)
    with pytest.raises(Corrupt, match="expected nothing more, found model/0002/sequential/batch_normalization/gamma"):
        checkpoints.read(Pair().save(tmp_path, 2), small)


def test_names_do_not_depend_on_what_else_was_built_in_the_process():
    first, second = Pair(), Pair()
    names = list(checkpoints.snapshot(first.model, first.optimizer))
    assert names == list(checkpoints.snapshot(second.model, second.optimizer))
    assert [v.path for v in first.model.variables] != [v.path for v in second.model.variables]
    assert names[0] == "model/0000/sequential/dense/kernel"


KINDS = ["bool", "uint8", "uint32", "uint64", "int8", "int16", "int64", "float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("kind", [*KINDS, "float8_e4m3fn", "float8_e5m2"])
def test_every_kind_of_variable_comes_back_bit_for_bit(tmp_path, kind):
    values = tf.cast(tf.constant([[0.0, 1.0, 0.1, 3.14159, 96.0]]), kind).numpy()
    one, two = (keras.Variable(array, dtype=kind, trainable=False) for array in (values, np.zeros_like(values)))
    owner, nothing = SimpleNamespace(variables=[one]), SimpleNamespace(variables=[])
    made = checkpoints.write(tmp_path, 1, checkpoints.snapshot(owner, nothing), {})
    checkpoints.read(made, SimpleNamespace(variables=[two]), nothing)
    assert two.dtype == kind
    assert two.numpy().tobytes() == values.tobytes()
    (array,) = checkpoints.arrays(made).values()
    assert array.dtype == values.dtype


def test_a_snapshot_does_not_change_when_the_training_goes_on():
    pair = Pair()
    taken = checkpoints.snapshot(pair.model, pair.optimizer)
    before = [array.copy() for array in taken.values()]
    pair.update(2)
    assert_same(list(taken.values()), before)
    assert not np.array_equal(taken["model/0000/sequential/dense/kernel"], pair.model.variables[0])


def test_variables_of_two_replicas_are_saved_once_and_restored_in_both(tmp_path):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    alone = Pair()
    alone.update(2)
    made = alone.save(tmp_path, 1)
    with strategy.scope():
        mirrored = Pair(seed=1)
    checkpoints.read(made, mirrored.model, mirrored.optimizer)
    for variable, value in zip((*mirrored.model.variables, *mirrored.optimizer.variables), alone.state(), strict=True):
        assert_same([local.numpy() for local in strategy.experimental_local_results(variable.value)], [value, value])
    taken = checkpoints.snapshot(mirrored.model, mirrored.optimizer)
    assert_same(list(taken.values()), alone.state())


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
    checkpoints.prune(tmp_path, 10, keep, best)
    assert sorted(os.listdir(tmp_path)) == [f"{step:09d}" for step in left]
    for path in checkpoints.listed(tmp_path):
        manifest.verify(path)


def test_a_damaged_checkpoint_does_not_push_out_the_one_that_the_run_went_on_to(tmp_path):
    saved_at(tmp_path, 1, 5)
    (tmp_path / "000000005" / DATA).write_bytes(b"")
    with checkpoints.Writer(tmp_path, 1) as writer:
        writer.submit(3, checkpoints.arrays(tmp_path / "000000001"), {}, "000000001")
    assert [int(path.name) for path in checkpoints.listed(tmp_path)] == [1, 3]


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
arrays = checkpoints.snapshot(model, optimizer)
checkpoints.write(Path(sys.argv[1]), 1, arrays, {"note": "at 1"})
write = tf.raw_ops.SaveV2
def killed(**arguments):
    write(**arguments)
    os.kill(os.getpid(), signal.SIGKILL)
tf.raw_ops.SaveV2 = killed
checkpoints.write(Path(sys.argv[1]), 2, arrays, {"note": "at 2"})
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
        checkpoints.write(tmp_path / "run" / "checkpoints", step, checkpoints.snapshot(model, optimizer), {})
        model.trainable_variables[0].assign_add(keras.ops.ones_like(model.trainable_variables[0]))
    with pytest.raises(UserError, match="is unfinished"):
        checkpoints.best_model(tmp_path / "run", config, analysis)
    manifest.write_file(tmp_path / "run" / "training.json", '{"best_checkpoint": "000000006"}')
    assert runs.finished(tmp_path / "run")
    best = checkpoints.best_model(tmp_path / "run", config, analysis)
    np.testing.assert_array_equal(best.trainable_variables[0] + 1.0 + 1.0, model.trainable_variables[0])
