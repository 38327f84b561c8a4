"""Claims about disks that are full, read-only or not ours: one line with the path, and nothing half written."""

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline import manifest
from pipeline.errors import CANNOT_WRITE, UserError, storage_failure


def commit(destination: Path, write: Callable[[Path], object]) -> None:
    with manifest.committing(destination) as draft:
        write(draft.path)


def fails(error: BaseException):
    def function(*_, **__):
        raise error

    return function


def half(error: Exception):
    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error

    return write


def shard(path: Path, rows: int = 100) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(rows):
            writer.write(bytes(10_000))


FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, FULL),
        tf.errors.ResourceExhaustedError(None, None, "{{node x}} /a/part-0; No space left on device [Op:SaveV2]"),
        RuntimeError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),
    ],
)
def test_a_disk_that_fills_up_inside_the_block_is_one_line_with_the_path(tmp_path, error):
    with pytest.raises(UserError) as raised:
        commit(tmp_path / "made", half(error))
    assert raised.value.code == CANNOT_WRITE
    assert str(raised.value) == (
        f"Cannot write {tmp_path / 'made'}: {FULL}. Nothing was changed; free space or choose another folder and "
        "repeat the command."
    )
    assert os.listdir(tmp_path) == []


def test_memory_that_runs_out_is_not_told_as_a_full_disk(tmp_path):
    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[1000000,1000000]")
    with pytest.raises(tf.errors.ResourceExhaustedError):
        commit(tmp_path / "made", half(error))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("step", ["mkdir", "fsync", "rename"])
def test_a_disk_that_refuses_any_step_is_one_line_with_the_path(tmp_path, monkeypatch, number, step):
    monkeypatch.setattr(os, step, fails(OSError(number, os.strerror(number))))
    with pytest.raises(UserError) as raised:
        commit(tmp_path / "made", lambda folder: (folder / "rows").write_text("1"))
    assert raised.value.code == CANNOT_WRITE
    assert f"Cannot write {tmp_path / 'made'}: {os.strerror(number)}." in str(raised.value)


def test_a_file_where_a_folder_should_be_is_one_line_with_the_path(tmp_path):
    (tmp_path / "records").write_text("a file")
    with pytest.raises(UserError, match=r"Cannot write .*/records/digits/made: Not a directory") as raised:
        commit(tmp_path / "records" / "digits" / "made", lambda folder: None)
    assert raised.value.code == CANNOT_WRITE


def test_a_source_that_may_not_be_read_is_not_told_as_a_failed_write(tmp_path):
    denied = (errno.EACCES, os.strerror(errno.EACCES))
    with pytest.raises(PermissionError):
        commit(tmp_path / "made", fails(PermissionError(*denied, "/elsewhere/rows.csv")))
    with pytest.raises(UserError, match="Permission denied"):
        commit(tmp_path / "made", lambda folder: fails(PermissionError(*denied, str(folder / "rows")))())


def test_tensorflow_meeting_a_full_device_is_the_same_one_line(tmp_path):
    def write(folder: Path) -> None:
        (folder / "shard").symlink_to("/dev/full")
        shard(folder / "shard")

    with pytest.raises(UserError, match=f"made: {FULL}") as raised:
        commit(tmp_path / "made", write)
    assert raised.value.code == CANNOT_WRITE
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("no"), FileNotFoundError(errno.ENOENT, "gone"), OSError("no number")])
def test_other_errors_are_no_storage_failure(error):
    assert storage_failure(error) is None


WRITERS: dict[str, Callable[[Path], object]] = {
    "file": lambda folder: (folder / "file").write_bytes(bytes(10**6)),
    "records": lambda folder: shard(folder / "shard"),
    "checkpoint": lambda folder: tf.train.Checkpoint(v=[tf.Variable(tf.ones([10**6]))]).write(str(folder / "state")),
    "saved model": lambda folder: save_model(folder),
}


def save_model(folder: Path) -> None:
    module = tf.Module()
    module.v = tf.Variable(tf.ones([10**6]))
    tf.saved_model.save(module, str(folder))


@pytest.mark.chaos
@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_real_small_or_read_only_disk_is_one_line_and_keeps_what_was_committed(tmp_path, writable, kind):
    disk = tmp_path / "disk"
    disk.mkdir()
    options = "size=256k" if writable else "size=256k,ro"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        if writable:
            commit(disk / "whole", lambda folder: (folder / "rows").write_text("1"))
        with pytest.raises(UserError, match=r"No space left" if writable else r"Read-only") as raised:
            commit(disk / "made", WRITERS[kind])
        assert raised.value.code == CANNOT_WRITE
        assert str(disk / "made") in str(raised.value)
        assert os.listdir(disk) == (["whole"] if writable else [])
        if writable:
            manifest.verify(disk / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)
