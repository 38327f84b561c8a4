"""The client's HTTP on a server that answers byte for byte what a test wants."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable

import pytest

from serving.connections import AsyncConnections, Connections, Reply, Request
from serving.errors import DeadlineExceeded, ServingError, Unavailable
from serving.exchange import Deadline

GET = Request("GET", "/v1/models/m")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Scripted:
    """Accepts connections and gives each to the next of `scripts`; the last one takes all others."""

    def __init__(self, *scripts: Callable[[socket.socket], None]):
        self.connections = 0
        self.requests: list[bytes] = []
        self._scripts = list(scripts)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
            threading.Thread(target=self._serve, args=(connection, script), daemon=True).start()

    def _serve(self, connection: socket.socket, script) -> None:
        with connection:
            with contextlib.suppress(OSError):
                script(self, connection)

    def read(self, connection: socket.socket) -> bool:
        """Takes one request, whose body must have come with its headers; False at the end of the connection."""
        self.requests.append(connection.recv(2**16))
        return bool(self.requests[-1])

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def always(answer: bytes):
    def script(server, connection):
        while server.read(connection):
            connection.sendall(answer)

    return script


def once(answer: bytes):
    def script(server, connection):
        server.read(connection)
        connection.sendall(answer)

    return script


def trickle(server, connection):
    server.read(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x: y\r\n")
        threading.Event().wait(0.02)


def continued(server, connection):
    while server.read(connection):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        threading.Event().wait(0.05)
        connection.sendall(OK)


def silent(server, connection):
    server.read(connection)
    server.read(connection)  # until the client goes


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """ask(server, request, ...) sends these one after another over one set of connections; a list of replies."""

    def blocking(address: str, *requests: Request, seconds: float = 20) -> list[Reply]:
        connections = Connections(address, 5)
        try:
            return [connections.send(request, Deadline(seconds, "there")) for request in requests]
        finally:
            connections.close()

    def awaiting(address: str, *requests: Request, seconds: float = 20) -> list[Reply]:
        async def run():
            connections = AsyncConnections(address, 5)
            try:
                return [await connections.send(request, Deadline(seconds, "there")) for request in requests]
            finally:
                await connections.close()

        return asyncio.run(run())

    return blocking if request.param == "sync" else awaiting


@pytest.fixture
def serve():
    servers = []

    def start(*scripts):
        servers.append(Scripted(*scripts))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_one_connection_carries_all_requests(ask, serve):
    server = serve(always(OK))
    post = Request("POST", "/v1/models/m:predict", b"[1]", (("x-request-id", "7"),))
    assert [(r.status, r.body) for r in ask(server.address, GET, post, GET)] == [(200, b"{}")] * 3
    assert server.connections == 1
    assert server.requests[1] == (
        b"POST /v1/models/m:predict HTTP/1.1\r\nhost: " + server.address.encode() + b"\r\nx-request-id: 7\r\n"
        b"content-type: application/json\r\ncontent-length: 3\r\n\r\n[1]"
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=["chunked", "names_in_capitals"],
)
def test_an_answer_is_read_to_its_end(ask, serve, answer):
    server = serve(always(answer))
    assert [r.body for r in ask(server.address, GET, GET)] == [b"{}", b"{}"]
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n{}", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
     b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"],
    ids=["without_length", "http_1_0", "connection_close"],
)  # fmt: skip
def test_a_connection_that_ends_with_its_answer_is_not_used_again(ask, serve, answer):
    server = serve(once(answer))
    assert [r.body for r in ask(server.address, GET, GET)] == [b"{}", b"{}"]
    assert server.connections == 2


def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again(serve):
    closed = threading.Event()

    def script(server, connection):
        once(OK)(server, connection)
        connection.close()
        closed.set()

    server = serve(script)
    connections = Connections(server.address, 5)
    for _ in range(2):
        assert connections.send(GET, Deadline(20, "there")).status == 200
        assert closed.wait(20)
        closed.clear()
    connections.close()
    assert server.connections == 2


@pytest.mark.parametrize("script", [trickle, silent], ids=["trickle", "silence"])
def test_neither_silence_nor_a_trickle_outlasts_the_deadline(ask, serve, script):
    with pytest.raises(DeadlineExceeded, match=r"no answer from there within 0\.2 s"):
        ask(serve(script).address, GET, seconds=0.2)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{}"], ids=["none", "half"])
def test_a_connection_broken_before_the_answers_end_is_unavailable(ask, serve, answer):
    with pytest.raises(Unavailable, match="closed before the answer"):
        ask(serve(once(answer)).address, GET)


def test_a_refused_connection_is_unavailable_and_names_the_address(ask):
    with pytest.raises(Unavailable, match=r"no server answers at 127\.0\.0\.1:1 "):
        ask("127.0.0.1:1", GET)


def test_an_unknown_host_is_unavailable(ask):
    with pytest.raises(Unavailable, match=r"no server answers at nowhere\.invalid:80 "):
        ask("nowhere.invalid:80", GET)


def test_what_is_not_http_is_named_as_such(ask, serve):
    with pytest.raises(ServingError, match="the answer is not HTTP"):
        ask(serve(once(b"SSH-2.0-OpenSSH\r\n")).address, GET)


def test_an_early_refusal_of_a_large_body_is_read(ask, serve):
    def refuse(server, connection):
        connection.recv(10)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(2**20):
            pass

    (reply,) = ask(serve(refuse).address, Request("POST", "/", bytes(2**24)))
    assert reply.status == 413


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:http", "http://host"])
def test_an_address_is_host_and_port(address):
    with pytest.raises(ValueError, match="host:port"):
        Connections(address, 1)


def test_a_refusal_is_read_even_when_the_server_hangs_up_on_the_body(serve):
    def refuse(server, connection):
        connection.recv(10)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")

    connections = Connections(serve(refuse).address, 5)
    reply = connections.send(Request("POST", "/", bytes(2**24)), Deadline(20, "there"))
    assert reply.status == 413


def test_an_answer_after_100_continue_is_the_answer(ask, serve):
    assert [r.body for r in ask(serve(continued).address, GET, GET)] == [b"{}", b"{}"]


def test_threads_share_a_client_and_each_holds_a_connection(serve):
    server = serve(always(OK))
    connections = Connections(server.address, 5)
    replies = []
    threads = [
        threading.Thread(target=lambda: replies.extend(connections.send(GET, Deadline(20, "")) for _ in range(50)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connections.close()
    assert len(replies) == 200
    assert server.connections <= 4


class Silent:
    """A socket whose peer drops every packet."""

    def __init__(self, *kind):
        self.seconds = 0.0

    def settimeout(self, seconds):
        self.seconds = seconds

    def connect(self, address):
        time.sleep(self.seconds)
        raise TimeoutError

    def close(self):
        pass


def test_all_addresses_of_a_host_share_the_time(monkeypatch):
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (f"10.0.0.{n}", 1)) for n in range(5)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    monkeypatch.setattr(socket, "socket", Silent)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        Connections("many:1", 5.0).send(GET, Deadline(0.3, "many:1"))
    assert time.monotonic() - began < 1
