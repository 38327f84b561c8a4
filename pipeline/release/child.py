"""The embedded server as a child process: ports for it, and its end."""

import signal
import socket
import subprocess

STOP_SECONDS = 20


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]  # all at once, so that they differ
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def stop(server: subprocess.Popen) -> None:
    """Returns when it has ended, after the requests under way or by force."""
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
