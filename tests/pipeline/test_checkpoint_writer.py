"""Claims about the thread that writes checkpoints: the training goes on beside it, and no failure of it is silent."""

import logging
import resource
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline import checkpoints, manifest
from pipeline.errors import CANNOT_WRITE, Corrupt, UserError
from tests import faults, invariants
from tests.numbered import KEEP, kept, restored, said, state, steps, submit


@contextmanager
def refusing(monkeypatch, refuse=lambda step: True):
    """A disk that is full for the checkpoints for which `refuse` says so."""
    write = tf.raw_ops.SaveV2

    def save(tensors, **options):
        if refuse(int(tensors[0][0])):
            faults.ERRORS["ENOSPC"]("SaveV2")
        write(tensors=tensors, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tf.raw_ops, "SaveV2", save)
        yield


def test_a_full_disk_is_a_warning_the_old_ones_stay_and_the_next_try_succeeds(tmp_path, monkeypatch, caplog):
    run_dir = kept(tmp_path)
    root = run_dir / "checkpoints"
    with refusing(monkeypatch, lambda step: step in (4, 5)), checkpoints.Writer(root, KEEP) as writer:
        for step in (4, 5, 6):
            submit(writer, step)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "checkpoint 000000005 was not written, the ones before it stay: Cannot write" in caplog.text
    assert "No space left on device" in caplog.text
    assert steps(root) == [1, 3, 6]
    assert invariants.broken(run_dir, committed=True) == []


def test_after_three_failures_in_a_row_the_run_stops_in_one_line(tmp_path, monkeypatch):
    root = kept(tmp_path) / "checkpoints"
    with refusing(monkeypatch), said() as errors, checkpoints.Writer(root, KEEP) as writer:
        for step in range(4, 99):
            submit(writer, step)
    assert step == 7
    assert [error.code for error in errors] == [CANNOT_WRITE]
    assert str(errors[0]).startswith(f"3 checkpoints in a row failed. Cannot write {root}/000000006: No space left")
    assert "\n" not in str(errors[0])
    assert steps(root) == [1, 2, 3]


def test_failures_that_are_not_in_a_row_do_not_stop_the_run(tmp_path, monkeypatch):
    root = kept(tmp_path) / "checkpoints"
    with refusing(monkeypatch, lambda step: step % 3), checkpoints.Writer(root, KEEP) as writer:
        for step in range(4, 16):
            submit(writer, step)
    assert steps(root) == [1, 12, 15]


def test_a_last_checkpoint_that_could_not_be_written_is_an_error_of_the_run(tmp_path, monkeypatch):
    root = kept(tmp_path) / "checkpoints"
    with refusing(monkeypatch), pytest.raises(UserError, match="No space left") as raised:
        with checkpoints.Writer(root, KEEP) as writer:
            submit(writer, 4)
    assert raised.value.code == CANNOT_WRITE


def test_but_does_not_hide_the_error_that_ended_the_training(tmp_path, monkeypatch, caplog):
    root = kept(tmp_path) / "checkpoints"
    with refusing(monkeypatch), said() as errors, checkpoints.Writer(root, KEEP) as writer:
        submit(writer, 4)
        raise ZeroDivisionError
    assert list(map(type, errors)) == [ZeroDivisionError]
    assert "the last checkpoint: Cannot write" in caplog.text


@pytest.mark.parametrize(("best", "left"), [(4, [1, 4, 6]), (5, [1, 5, 6]), (6, [1, 3, 6]), (1, [1, 3, 6])])
def test_no_checkpoint_names_a_best_one_that_the_disk_refused(tmp_path, monkeypatch, best, left):
    """Which is the best is known after its validation, so that one that was refused may be called it later."""
    run_dir, tried = kept(tmp_path), []

    def first_two(step: int) -> bool:
        tried.append(step)
        return len(tried) <= 2

    with refusing(monkeypatch, first_two), checkpoints.Writer(run_dir / "checkpoints", KEEP) as writer:
        for step in (4, 5):
            submit(writer, step)
        submit(writer, 6, best)
    assert steps(run_dir / "checkpoints") == left
    assert invariants.broken(run_dir, committed=True) == []


def test_a_kept_checkpoint_has_the_best_of_its_own_time_beside_it(tmp_path):
    """The run goes on from the older one when the newest is damaged, and may end with its best."""
    with checkpoints.Writer(tmp_path / "checkpoints", KEEP) as writer:
        for step, best in [(1, 1), (2, 1), (3, 1), (4, 1), (5, 5), (6, 5), (7, 5)]:
            submit(writer, step, best)
            writer.close()
            assert invariants.broken(tmp_path, committed=True) == []
    assert steps(tmp_path / "checkpoints") == [5, 6, 7]


@pytest.mark.parametrize(("submitted", "left"), [([4], [1, 2, 4]), ([3, 4], [1, 3, 4])])
def test_a_damaged_checkpoint_takes_no_whole_ones_place_until_it_is_written_anew(submitted, left, tmp_path):
    root, damaged = kept(tmp_path) / "checkpoints", set[str]()
    next((root / "000000003").glob("state.data*")).write_bytes(b"")
    assert restored(root, damaged=damaged) == 2
    with checkpoints.Writer(root, KEEP, damaged=damaged) as writer:
        for step in submitted:
            submit(writer, step)
    assert steps(root) == left


def test_nothing_is_removed_before_the_new_one_is_read_back_whole(tmp_path, monkeypatch):
    root = kept(tmp_path) / "checkpoints"
    verify = manifest.verify

    def rotten(path: Path):
        if path.name == "000000004":
            raise Corrupt(f"{path} has changed since it was written")
        return verify(path)

    monkeypatch.setattr(manifest, "verify", rotten)
    with suppress(UserError), checkpoints.Writer(root, KEEP) as writer:
        submit(writer, 4)
    assert steps(root) == [1, 2, 3, 4]


def test_another_error_of_the_thread_is_raised_at_the_next_submit(tmp_path):
    writer = checkpoints.Writer(tmp_path, KEEP)
    writer.submit(1, state(1), {"not JSON": object()}, None)
    with pytest.raises(TypeError, match="not JSON serializable"):
        submit(writer, 2)
    with writer:
        submit(writer, 3)
    assert steps(tmp_path) == [3]


def test_submit_returns_at_once_and_waits_only_for_the_one_before(tmp_path, monkeypatch):
    write, gates, writing = tf.raw_ops.SaveV2, {1: threading.Event(), 2: threading.Event()}, []

    def slow(tensors, **options):
        writing.append(int(tensors[0][0]))
        assert gates[writing[-1]].wait(60)
        write(tensors=tensors, **options)

    monkeypatch.setattr(tf.raw_ops, "SaveV2", slow)
    second: Future[None] = Future()
    with checkpoints.Writer(tmp_path, KEEP) as writer:
        submit(writer, 1)
        assert (steps(tmp_path), writer.stalled) == ([], pytest.approx(0, abs=0.1))
        thread = threading.Thread(target=lambda: second.set_result(submit(writer, 2)))
        thread.start()
        time.sleep(0.1)
        assert not second.done()
        assert writing == [1]
        gates[1].set()
        second.result(60)
        thread.join()
        assert steps(tmp_path) == [1]
        assert writer.stalled > 0.09
        gates[2].set()
        writer.close()
        assert steps(tmp_path) == [1, 2]


def test_a_limit_on_the_size_of_files_met_by_tensorflow_itself_leaves_nothing(tmp_path, caplog):
    run_dir = kept(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large"), checkpoints.Writer(run_dir / "checkpoints", 9) as writer:
            submit(writer, 4, size=10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert invariants.broken(run_dir, committed=True) == []
    assert steps(run_dir / "checkpoints") == [1, 2, 3]
