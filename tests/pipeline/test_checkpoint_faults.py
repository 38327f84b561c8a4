"""Claims about checkpoints under faults: a kill or an error at any system call loses no more than the newest."""

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline import checkpoints
from pipeline.errors import CANNOT_WRITE, UserError
from tests import faults, invariants
from tests.numbered import KEEP, SIZE, facts, kept, restored, said, state, steps, submit

ROOT = Path(__file__).resolve().parents[2]


def again(run_dir: Path) -> Path:
    """A run that comes once more to update 4, whose checkpoint was damaged and passed over."""
    damaged = checkpoints.write(kept(run_dir) / "checkpoints", 4, state(4), facts(1))
    (damaged / "state.index").unlink()
    return run_dir


def new(run_dir: Path) -> Path:
    run_dir.mkdir()
    return run_dir


SETTINGS = {"the first": new, "with one to remove": kept, "in the place of a damaged one": again}
LONGEST = 36  # calls of the longest of them, which is tested to be enough


def copies(tmp_path: Path, setting: str) -> Iterator[tuple[int, Path, list[int]]]:
    """For the n-th call each: n, a run in that setting, and the checkpoints that it has."""
    template = SETTINGS[setting](tmp_path / "template")
    for n in range(1, LONGEST + 1):
        run_dir = tmp_path / str(n)
        shutil.copytree(template, run_dir)
        yield n, run_dir, steps(run_dir / "checkpoints")


@pytest.fixture
def fast(monkeypatch):
    """The calls are counted all the same."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_kill_at_any_call_leaves_one_to_go_on_from_and_the_next_process_goes_on(tmp_path, setting, fast):
    for n, run_dir, before in copies(tmp_path, setting):
        root = run_dir / "checkpoints"
        with faults.at(n, faults.killed) as calls, suppress(faults.Killed):
            with checkpoints.Writer(root, KEEP) as writer:
                submit(writer, 4, best=1 if before else 4)
        with checkpoints.Writer(root, KEEP) as writer:  # the next process
            assert invariants.broken(run_dir, committed=bool(before)) == [] or setting.endswith("damaged one")
            assert restored(root) in ([3, 4] if before else [None, 4])
            submit(writer, 4, best=1 if before else 4)
        assert invariants.broken(run_dir, committed=True) == []
        assert restored(root) == 4
        assert steps(root) == ([1, 3, 4] if before else [4])
    assert len(calls.names) < LONGEST


def assert_survives(tmp_path: Path, setting: str, act) -> None:
    """An error at each call in turn: the training goes on or ends in words, and the next checkpoint is whole."""
    for n, run_dir, before in copies(tmp_path, setting):
        root = run_dir / "checkpoints"
        with faults.at(n, act) as calls, said() as error:
            with checkpoints.Writer(root, KEEP) as writer:
                submit(writer, 4, best=1 if before else 4)
        if error and "Interrupted system call" not in str(error[0]):  # Python itself repeats those
            assert isinstance(error[0], UserError)
            assert error[0].code == CANNOT_WRITE
            assert "\n" not in str(error[0])
        with checkpoints.Writer(root, KEEP) as writer:
            if setting != "in the place of a damaged one":
                assert invariants.broken(run_dir, committed=bool(before)) == []
            assert restored(root) in ([3, 4] if before else [None, 4])
            for step in (4, 5):
                submit(writer, step, best=1 if before else 4)
        assert invariants.broken(run_dir, committed=True) == []
        assert restored(root) == 5
    assert len(calls.names) < LONGEST


def test_a_full_disk_at_any_call_leaves_one_to_go_on_from(tmp_path, fast):
    assert_survives(tmp_path, "with one to remove", faults.ERRORS["ENOSPC"])


@pytest.mark.chaos
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("error", faults.ERRORS)
def test_any_error_of_a_flaky_disk_at_any_call_leaves_one_to_go_on_from(tmp_path, setting, error, fast):
    assert_survives(tmp_path, setting, faults.ERRORS[error])


@pytest.mark.chaos
def test_a_disk_that_is_really_full_and_then_freed(tmp_path, caplog):
    disk = tmp_path / "a disk – ф"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        root, size = disk / "checkpoints", 60_000  # 240 kB each: the disk holds four, and keep=9 removes none
        with checkpoints.Writer(root, 9) as writer:
            for step in (1, 2, 3, 4, 5):
                submit(writer, step, size=size)
            with suppress(UserError):
                writer.close()
            assert "checkpoint 000000005 was not written" in caplog.text
            assert invariants.broken(disk, committed=True) == []
            assert restored(root, size) == 4
            shutil.rmtree(root / "000000002")
            submit(writer, 6, size=size)
            writer.close()
            assert restored(root, size) == 6
        with said() as errors, checkpoints.Writer(root, 9) as writer:
            for step in range(7, 99):
                submit(writer, step, size=size)
        assert "3 checkpoints in a row failed" in str(errors)
        assert step == 10
        assert invariants.broken(disk, committed=True) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.chaos
def test_a_disk_that_turns_read_only_for_a_while(tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with checkpoints.Writer(disk / "checkpoints", KEEP) as writer:
            for step in (1, 2, 3, 4):
                writer.submit(step, state(step), facts(1), "000000001")
                with suppress(UserError):
                    writer.close()
                subprocess.run(["mount", "-o", "remount,ro" if step == 2 else "remount,rw", disk], check=True)
        assert "Read-only file system" in caplog.text
        assert steps(disk / "checkpoints") == [1, 2, 4]
        assert invariants.broken(disk, committed=True) == []
    finally:
        subprocess.run(["umount", disk], check=True)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from pipeline import checkpoints
from tests import faults
print("ready", flush=True)  # a process that an import starts may swallow what is on stdin by then
for line in sys.stdin:  # TensorFlow is imported once, and makes its threads in the children only
    root, n, size = line.rstrip("\\n").split("|")
    child = os.fork()
    if not child:
        with faults.at(int(n), lambda name: os.kill(os.getpid(), signal.SIGKILL)):
            with checkpoints.Writer(Path(root), 2) as writer:
                for step in range(4, 500):
                    arrays = {"model/0000/weights": np.full([int(size)], step, np.float32)}
                    writer.submit(step, arrays, {"standing": {"best_checkpoint": "000000001"}}, "000000001")
                    if step == 4:
                        print(child, flush=True)
                        print(os.getpid(), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)
"""


@pytest.fixture
def killer():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def restart(run_dir: Path, size: int) -> int:
    root = run_dir / "checkpoints"
    with checkpoints.Writer(root, KEEP) as writer:
        assert invariants.broken(run_dir, committed=True) == []
        step = restored(root, size)
        submit(writer, step + 1, size=size)
    assert restored(root, size) == step + 1
    return step


@pytest.mark.chaos
def test_a_real_kill_at_any_call(tmp_path, killer):
    for n in range(1, 2 * LONGEST):
        run_dir = kept(tmp_path / str(n))
        print(f"{run_dir / 'checkpoints'}|{n}|{SIZE}", file=killer.stdin, flush=True)
        while not (line := killer.stdout.readline()).startswith("ended"):
            assert line
        assert line == "ended -9\n"
        assert restart(run_dir, SIZE) >= 3


@pytest.mark.chaos
def test_a_real_kill_at_any_moment(tmp_path, killer):
    size, chance, seen = 3_000_000, random.Random(0), set()
    for n in range(20):
        run_dir = tmp_path / str(n)
        with checkpoints.Writer(run_dir / "checkpoints", KEEP) as writer:
            submit(writer, 1, size=size)
        print(f"{run_dir / 'checkpoints'}|{10**9}|{size}", file=killer.stdin, flush=True)
        killer.stdout.readline()
        child = int(killer.stdout.readline())
        time.sleep(chance.uniform(0, 1))
        os.kill(child, 9)
        assert killer.stdout.readline() == "ended -9\n"
        seen.add(restart(run_dir, size))
        shutil.rmtree(run_dir)
    assert len(seen) > 1


@pytest.mark.chaos
@pytest.mark.parametrize("number", [errno.EXDEV])
def test_nothing_is_renamed_from_one_disk_to_another_wherever_tmpdir_is(tmp_path, monkeypatch, number):
    """`os.rename` fails between file systems, so the draft has to lie beside its destination."""
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    monkeypatch.setattr("tempfile.tempdir", None)
    rename = os.rename

    def same_disk(source, destination):
        if Path(source).parent != Path(destination).parent:
            raise OSError(number, os.strerror(number))
        rename(source, destination)

    monkeypatch.setattr(os, "rename", same_disk)
    assert restored(kept(tmp_path) / "checkpoints") == 3


@pytest.mark.chaos
def test_a_clock_that_goes_back_changes_no_order(tmp_path):
    root = kept(tmp_path) / "checkpoints"
    for age, path in enumerate(checkpoints.listed(root)):
        os.utime(path, (10**9 - age, 10**9 - age))
    with checkpoints.Writer(root, KEEP) as writer:
        os.utime(root / "000000003", (2**31, 2**31))
        submit(writer, 4)
    assert steps(root) == [1, 3, 4]
    assert restored(root) == 4
