"""The embedded server as a child process: ports for it, and its end, which is at the latest that of its parent."""

import ctypes
import os
import signal
import socket
import subprocess
import sys

STOP_SECONDS = 20
_PR_SET_PDEATHSIG = 1  # of Linux' prctl.h


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]  # all at once, so that they differ
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def start(words: list[str], **options) -> subprocess.Popen:
    """`minibatch` with these words, told to stop when this thread ends, however that is: kill -9 runs no `finally`."""
    return subprocess.Popen([sys.executable, "-m", __name__, str(os.getpid()), *words], **options)


def stop(server: subprocess.Popen) -> None:
    """Returns when it has ended, after the requests under way or by force."""
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # stays through execv
    if os.getppid() == int(sys.argv[1]):  # else it has ended before
        os.execv(sys.executable, [sys.executable, "-m", "pipeline", *sys.argv[2:]])


if __name__ == "__main__":
    main()
