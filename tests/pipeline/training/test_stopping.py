"""Claims about SIGTERM: saved at the next update, or ended all the same, whatever the main thread sits in."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.errors import TERMINATED, UserError
from pipeline.training import stopping
from pipeline.training.stopping import Stopping

ROOT = Path(__file__).resolve().parents[3]

START = """
import ctypes, os, sys, threading, time
from pathlib import Path
from pipeline.errors import UserError
from pipeline.training import stopping
def hang():  # in C, without the interpreter's lock, and no signal gets it out of there: a mutex locked twice
    mutex = ctypes.create_string_buffer(256)
    while True:
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
def tell():
    while not stop.requested:
        time.sleep(0.01)
    print("requested", flush=True)
"""
FOREVER = "stopping.GRACE = 3600"


class Child:
    """A process inside `with Stopping`, running `body`; it has said "ready"."""

    def __init__(self, body: str, setting: str = ""):
        lines = [setting, 'with stopping.Stopping(Path("runs/tiny/0001")) as stop:', '    print("ready", flush=True)']
        code = START + "\n".join([*lines, *(f"    {line}" for line in body.splitlines())])
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, str]:
        """(exit code, stderr)"""
        try:
            return self.process.wait(60), self.process.stderr.read()
        finally:
            self.process.kill()
            self.process.communicate()


def test_a_loop_that_asks_between_two_updates_ends_by_itself():
    child = Child(
        "try:\n"
        "    while not stop.requested:\n"
        "        time.sleep(0.01)\n"
        "    raise UserError('saved', 143)\n"
        "except UserError as error:\n"
        "    sys.exit(error.code)",
        FOREVER,
    )
    child.terminate()
    assert child.end() == (TERMINATED, "")


@pytest.mark.parametrize("work", ["hang()", "while True: time.sleep(0.01)"])
def test_what_never_asks_is_ended_after_the_grace_with_one_line(work):
    child = Child(work, "stopping.GRACE = 0.1")
    child.terminate()
    code, said = child.end()
    assert code == TERMINATED
    assert said == (
        "minibatch: runs/tiny/0001: stopped by SIGTERM, its work was not done within 0.1 s (in a fresh run with "
        "--train.plan given, fewer --train.steps-per-call help): all since the last checkpoint is lost; the same "
        "command (without --fresh) goes on from there.\n"
    )


def test_the_grace_leaves_time_below_the_two_seconds_that_were_promised():
    assert stopping.GRACE <= 1.5


@pytest.mark.parametrize("work", ["hang()", "while True: time.sleep(0.01)"])
def test_a_second_signal_ends_it_at_once(work):
    child = Child(f"threading.Thread(target=tell, daemon=True).start()\n{work}", FOREVER)
    child.terminate()
    assert child.process.stdout.readline() == "requested\n"
    assert child.process.poll() is None
    child.terminate()
    code, said = child.end()
    assert code == TERMINATED
    assert "by a second one at once" in said


FULL = """os.set_blocking(2, False)
try:
    while os.write(2, bytes(4096)): pass
except BlockingIOError:
    os.set_blocking(2, True)
print("full", flush=True)
hang()"""


@pytest.mark.parametrize("stderr", [FULL, "os.close(2)\nprint('full', flush=True)\nhang()"])
def test_a_stderr_that_nobody_reads_or_that_is_closed_does_not_keep_it_alive(stderr):
    child = Child(stderr, "stopping.GRACE = 0.1")
    assert child.process.stdout.readline() == "full\n"
    child.terminate()
    assert child.end()[0] == TERMINATED


@pytest.fixture
def handler():
    """A handler and a wakeup descriptor of the process that calls us; they must be there again afterwards."""
    received: list[int] = []
    read, write = os.pipe()
    os.set_blocking(write, False)
    handler, wakeup = signal.signal(signal.SIGTERM, lambda *_: received.append(1)), signal.set_wakeup_fd(write)
    yield received, write
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGTERM, handler)
    os.close(read)
    os.close(write)


def test_what_listened_before_listens_again_and_nothing_is_left(handler):
    received, write = handler
    before, threads = signal.getsignal(signal.SIGTERM), threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd"))
    stop = Stopping(Path("run"))
    with contextlib.suppress(ZeroDivisionError), stop:
        os.kill(os.getpid(), signal.SIGTERM)
        raise ZeroDivisionError
    assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(write) == write
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, descriptors)
    assert received == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == [1]


def test_a_signal_that_nobody_asked_about_is_not_lost(handler):
    with pytest.raises(UserError, match="run: stopped by SIGTERM") as raised, Stopping(Path("run")):
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.code == TERMINATED


def test_without_a_signal_nothing_happens(handler):
    with Stopping(Path("run")) as stop:
        pass
    assert not stop.requested


def test_ctrl_c_is_what_it_was(handler):
    with pytest.raises(KeyboardInterrupt), Stopping(Path("run")) as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert not stop.requested


def test_outside_the_main_thread_it_does_nothing(handler):
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Stopping(Path("run")) as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
