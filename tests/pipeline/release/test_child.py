"""The trial server goes with who booted it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BOOT = """
import subprocess, sys, time
from pipeline.release import child
server = child.start(["serve", "--model_name=none", f"--model_base_path={sys.argv[1]}", "--port=0", "--rest_api_port=0",
                      f"--grpc_socket_path={sys.argv[1]}/socket"], stderr=subprocess.DEVNULL)
print(server.pid, flush=True)
time.sleep(100)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.chaos
@pytest.mark.parametrize("after", [0.0, 2.0, 6.0])  # seconds: before it is a server, while it imports, when it waits
def test_a_server_ends_when_its_parent_is_killed(tmp_path, after):
    parent = subprocess.Popen([sys.executable, "-c", BOOT, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with parent:
        server = int(parent.stdout.readline())
        time.sleep(after)
        assert alive(server)
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while alive(server) and time.monotonic() < until:
        time.sleep(0.1)
    left = alive(server)
    with contextlib.suppress(ProcessLookupError):
        os.kill(server, signal.SIGKILL)
    assert not left
