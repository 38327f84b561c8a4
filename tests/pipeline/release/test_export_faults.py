"""An export that is killed, or whose disk is full, shows nothing and changes no serving root; the next tidies up."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline import manifest
from pipeline.errors import CANNOT_WRITE, UserError
from pipeline.release.export import export
from pipeline.training.loop import train
from tests import tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    train(tiny.config("recommendation", root, epochs=1), tiny.records_dir("recommendation", root))
    return root


@pytest.fixture
def run(trained, tmp_path) -> tuple:
    """A trained run that is not exported yet, its records and its config; version 3 is served beside them."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    config = tiny.config("recommendation", tmp_path, epochs=1)
    with manifest.committing(config.exports_root / "3") as draft:
        (draft.path / "saved_model.pb").write_text("served")
    return config.runs_root / "0001", tmp_path / "records" / "recommendation" / "0123456789abcdef", config


def served(config) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in config.exports_root.rglob("*") if path.is_file()}


def half(save):
    """Saves, then cuts the largest file."""

    def cut(module, directory, **options):
        save(module, directory, **options)
        files = [path for path in Path(directory).rglob("*") if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)

    return cut


STEPS = {
    "the model": ("saved_model.save", tf.errors.ResourceExhaustedError(None, None, "x; No space left on device")),
    "the warm-up": ("io.TFRecordWriter", tf.errors.ResourceExhaustedError(None, None, "y; No space left on device")),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_one_line_and_the_next_export_is_whole(run, monkeypatch, step):
    (run_dir, records_dir, config), (place, error) = run, STEPS[step]
    before, folder, name = served(config), getattr(tf, place.split(".")[0]), place.split(".")[1]
    original = getattr(folder, name)

    def full(*arguments, **options):
        if name == "save":
            half(original)(*arguments, **options)
        raise error

    monkeypatch.setattr(folder, name, full)
    with pytest.raises(UserError, match="No space left on device") as raised:
        export(run_dir, records_dir, config)
    assert raised.value.code == CANNOT_WRITE
    assert "\n" not in str(raised.value)
    assert [path.name for path in run_dir.iterdir() if "export" in path.name or path.name.startswith(".tmp")] == []
    assert served(config) == before
    monkeypatch.undo()
    manifest.verify(export(run_dir, records_dir, config))


def test_what_a_killed_export_left_is_passed_over_and_collected(run):
    run_dir, records_dir, config = run
    left = run_dir / manifest.draft_name(run_dir).name.replace(f"-{os.getpid()}-", f"-{dead()}-")
    (left / "variables").mkdir(parents=True)
    (left / "saved_model.pb").write_text("half")
    assert not manifest.is_committed(run_dir / "export")
    manifest.verify(export(run_dir, records_dir, config))
    assert not left.exists()


def dead() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


KILLED = """
import os, signal, sys
from pathlib import Path
import tensorflow as tf
from tests import tiny
import importlib
module = importlib.import_module("pipeline.release.export")
root, step = Path(sys.argv[1]), sys.argv[2]
kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if step == "save":
    save = tf.saved_model.save
    tf.saved_model.save = lambda *words, **options: (save(*words, **options), kill())
elif step == "warm-up":
    module._write_warmup = kill
else:
    os.rename = kill
config = tiny.config("recommendation", root, epochs=1)
module.export(config.runs_root / "0001", root / "records" / "recommendation" / "0123456789abcdef", config)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("step", ["save", "warm-up", "rename"])
def test_a_kill_at_any_step_leaves_the_root_as_it_was_and_the_next_export_is_whole(run, tmp_path, step):
    run_dir, records_dir, config = run
    before = served(config)
    words = [sys.executable, "-c", KILLED, str(tmp_path), step]
    assert subprocess.run(words, cwd=ROOT, timeout=120).returncode == -signal.SIGKILL
    (left,) = run_dir.glob(".tmp-*")
    assert not (run_dir / "export").exists()
    assert served(config) == before
    manifest.verify(export(run_dir, records_dir, config))
    assert not left.exists()
    assert served(config) == before


@pytest.mark.chaos
def test_a_disk_that_is_really_full_shows_no_export(run, tmp_path):
    run_dir, records_dir, config = run
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        shutil.copytree(run_dir, small / "0001")
        filler = small / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(small).free - 24_000))
        with pytest.raises(UserError, match="No space left on device") as raised:
            export(small / "0001", records_dir, config)
        assert raised.value.code == CANNOT_WRITE
        assert list((small / "0001").glob(".tmp-*")) == []
        filler.unlink()
        manifest.verify(export(small / "0001", records_dir, config))
    finally:
        subprocess.run(["umount", small], check=True)
