"""Claims about disks that are full, read-only, failing or not ours: one line with the path, nothing half written."""

import errno
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline import manifest
from pipeline.errors import CANNOT_WRITE, UserError, storage_failure
from tests import faults


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("step", ["mkdir", "fsync", "rename"])
def test_a_disk_that_refuses_any_step_is_one_line_with_the_path(tmp_path, monkeypatch, number, step):
    monkeypatch.setattr(os, step, fails(OSError(number, os.strerror(number))))
    with pytest.raises(UserError) as raised:
        commit(tmp_path / "made", rows())
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


def rows(text: str = "1"):
    return lambda folder: (folder / "rows").write_text(text)


def failing_at(place: Path, number: int):
    """An fsync that fails for one file or folder."""
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(place):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    return sync


def test_an_fsync_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest.os, "fsync", fails(OSError(errno.EIO, "I/O error")))
    with pytest.raises(UserError, match="made: Input/output error") as raised:
        commit(tmp_path / "made", rows())
    assert raised.value.code == CANNOT_WRITE
    assert os.listdir(tmp_path) == []


def test_a_rename_that_the_disk_does_not_note_is_undone(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest.os, "fsync", failing_at(tmp_path, errno.EIO))
    with pytest.raises(UserError, match="Nothing was changed"):
        commit(tmp_path / "made", rows())
    assert os.listdir(tmp_path) == []


def test_but_never_what_another_process_committed(tmp_path, monkeypatch):
    commit(tmp_path / "made", rows("first"))
    monkeypatch.setattr(manifest.os, "fsync", failing_at(tmp_path, errno.EIO))
    with manifest.committing(tmp_path / "made", exist_ok=True) as draft:
        rows("second")(draft.path)
    assert (tmp_path / "made" / "rows").read_text() == "first"


def test_a_file_system_that_cannot_sync_folders_is_good_enough_but_files_must_be_synced(tmp_path, monkeypatch):
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isdir(place) or place.endswith("other file"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(manifest.os, "fsync", sync)
    commit(tmp_path / "made", rows())
    manifest.verify(tmp_path / "made")
    with pytest.raises(OSError, match="Invalid argument"):
        commit(tmp_path / "other", lambda folder: (folder / "other file").write_text("1"))
    assert os.listdir(tmp_path) == ["made"]


def test_folders_above_that_are_new_are_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    events, rename = [], os.rename
    monkeypatch.setattr(manifest.os, "fsync", lambda fd: events.append(os.readlink(f"/proc/self/fd/{fd}")))
    monkeypatch.setattr(manifest.os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    commit(tmp_path / "runs" / "0001" / "made", rows())
    assert {str(tmp_path), str(tmp_path / "runs")} <= set(events[: events.index("rename")])


def test_any_error_at_any_call_of_a_commit_leaves_all_or_nothing(tmp_path):
    for kind, error in faults.ERRORS.items():
        for n in range(1, 30):
            parent = tmp_path / f"{kind}-{n}" / "new"
            told: Exception | None = None
            with faults.at(n, error) as calls:
                try:
                    commit(parent / "made", rows())
                except (UserError, OSError) as raised:
                    told = raised
            if told is None:
                manifest.verify(parent / "made")
                assert os.listdir(parent) == ["made"]
            else:
                assert kind == "EINTR" or getattr(told, "code", 0) == CANNOT_WRITE
                assert not parent.exists() or os.listdir(parent) == []
        assert len(calls.names) < 29


def test_any_error_at_any_call_leaves_a_single_file_old_or_new(tmp_path):
    for kind, error in faults.ERRORS.items():
        for n in range(1, 12):
            path = tmp_path / f"{kind}-{n}" / "training.json"
            path.parent.mkdir()
            path.write_text("old")
            with faults.at(n, error) as calls, suppress(OSError):
                manifest.write_file(path, "new")
            assert path.read_text() in ("old", "new")
            manifest.sweep(path.parent, alone=True)
            assert os.listdir(path.parent) == ["training.json"]
        assert len(calls.names) < 11


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
            commit(disk / "whole", rows())
        with pytest.raises(UserError, match=r"No space left" if writable else r"Read-only") as raised:
            commit(disk / "made", WRITERS[kind])
        assert raised.value.code == CANNOT_WRITE
        assert str(disk / "made") in str(raised.value)
        assert os.listdir(disk) == (["whole"] if writable else [])
        if writable:
            manifest.verify(disk / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)
