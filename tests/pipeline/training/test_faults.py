"""Claims about training on damaged records and under signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline import checkpoints, manifest, records, runs
from pipeline.errors import TERMINATED, UserError
from pipeline.training import loop
from pipeline.training.journal import read
from tests import tiny

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny.records_dir("recommendation", tmp_path_factory.mktemp("faults"))


def flip(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)


def cut_between_records(shard: Path) -> None:
    kept = [record.numpy() for record in tf.data.TFRecordDataset(str(shard)).take(40)]
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for record in kept:
            writer.write(record)


HARMS = {
    "a flipped bit": flip,
    "cut in a record": lambda shard: os.truncate(shard, shard.stat().st_size - 5),
    "cut between records": cut_between_records,
    "cut in half": lambda shard: os.truncate(shard, shard.stat().st_size // 2),
    "deleted": lambda shard: shard.unlink(),
    "a stray shard beside it": lambda shard: shutil.copy(shard, shard.with_name("train-00009-of-00001.tfrecord")),
}


@pytest.mark.parametrize("harm", HARMS)
def test_records_that_lost_or_won_a_byte_or_a_file_are_refused_by_name_before_the_first_update(harm, whole, tmp_path):
    directory = tmp_path / whole.name
    shutil.copytree(whole, directory)
    HARMS[harm](directory / records.shard_name("train", 0, 1))
    with pytest.raises(UserError, match=r"train-0000[09]-of-00001\.tfrecord") as raised:
        loop.train(tiny.config("recommendation", tmp_path), directory)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.chaos
def test_sigterm_saves_the_update_and_ends_with_143_in_two_seconds_and_the_rest_is_bit_equal(whole, tmp_path):
    undisturbed = loop.train(tiny.config("recommendation", tmp_path / "a", epochs=40, patience=40), whole)
    program = (
        "from pathlib import Path; from tests import tiny; from pipeline.__main__ import fail\n"
        "from pipeline.errors import UserError; from pipeline.training import loop\n"
        f"config = tiny.config('recommendation', Path({str(tmp_path / 'b')!r}), epochs=40, patience=40)\n"
        f"try: loop.train(config, Path({str(whole)!r}))\n"
        "except UserError as error: fail(str(error), error.code)\n"
    )
    run_dir = tmp_path / "b/runs/tiny-recommendation/0001"
    for stop_after in (4, 60, 130, None):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while stop_after and process.poll() is None and _last(run_dir) < stop_after:
            time.sleep(0.005)
        before = time.monotonic()
        if stop_after:
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        if stop_after:
            assert (process.returncode, time.monotonic() - before < 2.0) == (TERMINATED, True), said
            assert "stopped by SIGTERM after update" in said.splitlines()[-1]
            assert _last(run_dir) == manifest.read(checkpoints.listed(run_dir / "checkpoints")[-1])["step"]
    assert process.returncode == 0, said
    for root in (undisturbed, run_dir):
        assert runs.finished(root)["steps"] == 240
    one, two = (checkpoints.arrays(checkpoints.listed(root / "checkpoints")[-1]) for root in (undisturbed, run_dir))
    assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in two.items()}
    logs = [[(line["step"], line["split"]) for line in read(root)] for root in (undisturbed, run_dir)]
    assert logs[0] == logs[1]
    assert json.loads((run_dir / "plan.json").read_text()) == json.loads((undisturbed / "plan.json").read_text())


def _last(run_dir: Path) -> int:
    return max((line["step"] for line in read(run_dir)), default=0)
