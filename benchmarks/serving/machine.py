"""Two cores, one for the server and one for the load, and what a process spends: CPU time, memory, threads, files."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVER_CORE, LOAD_CORE = (sorted(os.sched_getaffinity(0)) * 2)[:2]
START_SECONDS = 180
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A server process, with those that it started itself."""

    name: str
    popen: subprocess.Popen
    log: Path

    def members(self) -> list[int]:
        """Process ids: its own first, then its descendants'."""
        found = [self.popen.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += map(int, children.read_text().split())
        return found

    def cpu_seconds(self) -> float:
        """User and system time of all members so far."""
        return sum(_ticks(pid) for pid in self.members()) / _TICK

    def memory(self) -> float:
        """Resident MiB of the server process itself."""
        return _status(self.popen.pid, "VmRSS") / 1024

    def threads(self) -> int:
        return _status(self.popen.pid, "Threads")

    def files(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))

    def wait_for(self, right: Callable[[], bool]) -> None:
        """Until `right` holds; what it raises meanwhile counts as no. Raises RuntimeError with the end of the log."""
        deadline, last = time.monotonic() + START_SECONDS, "a wrong answer"
        while time.monotonic() < deadline and self.popen.poll() is None:
            try:
                if right():
                    return
            except Exception as error:
                last = repr(error)
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} does not answer ({last}):\n{self.log.read_text()[-3000:]}")


@contextlib.contextmanager
def running(name: str, command: list, folder: Path, **environment: str) -> Iterator[Process]:
    """Starts `command` on the server's core, in a session of its own that is ended at the end."""
    log = folder / f"{name.replace(' ', '-')}.log"
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)}
    with open(log, "wb") as file:
        popen = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *map(str, command)],
            cwd=ROOT,
            env={**os.environ, **quiet, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process = Process(name, popen, log)
    try:
        yield process
    finally:
        members = process.members()
        popen.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(timeout=15)
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        popen.wait()


@contextlib.contextmanager
def serving(root: Path, *flags: str) -> Iterator[tuple[Process, str, str]]:
    """Our server on the models in `root`, and its REST and gRPC addresses; it may not answer yet."""
    rest, rpc = free_ports(2)
    command = [sys.executable, "-m", "serving.server", f"--serving_root={root}"]
    with running("ours", [*command, f"--rest_api_port={rest}", f"--port={rpc}", *flags], root) as process:
        yield process, f"127.0.0.1:{rest}", f"127.0.0.1:{rpc}"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def busy_seconds(core: int) -> float:
    """All that ran on `core` since the machine started."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, _, _, interrupts, soft = map(int, line.split()[1:8])
    return (user + nice + system + interrupts + soft) / _TICK


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:13]))  # utime, stime


def _status(pid: int, key: str) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])
