"""HTTP/1.1 over connections that are kept and used again, for threads and for asyncio.

An HTTP library costs four to six times the CPU of this (docs/client.md); httptools parses, as in uvicorn.
"""

import asyncio
import contextlib
import select
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import httptools

from serving.errors import ServingError, Unavailable
from serving.exchange import Deadline
from serving.settings import Tls

_CHUNK = 2**18


class Request(NamedTuple):
    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class _Arrival:
    """A reply while it comes in."""

    def __init__(self) -> None:
        self.complete = False
        self.keeps_alive = False
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Raises ConnectionResetError when the connection ended (no data), ServingError when this is not HTTP."""
        if not data and self._ends_with_the_connection():
            self.complete = True
        elif not data:
            raise ConnectionResetError("the connection was closed before the answer")
        else:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                raise ServingError(f"the answer is not HTTP: {error}") from None

    def reply(self) -> Reply:
        return Reply(self._parser.get_status_code(), self._headers, b"".join(self._parts))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self.complete = self._parser.get_status_code() >= 200
        self.keeps_alive = self._parser.should_keep_alive()  # known only here: the parser forgets it

    def _ends_with_the_connection(self) -> bool:
        return bool(self._headers) and not self._headers.keys() & {"content-length", "transfer-encoding"}


class _Address:
    """What both kinds share: where to, and how a request is written."""

    def __init__(self, address: str, connect_seconds: float, tls: ssl.SSLContext | None):
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal()):
            raise ValueError(f"an address is host:port, not {address!r}")
        self._address = address
        self._host, self._port = host.strip("[]"), int(port)
        self._connect_seconds = connect_seconds
        self._tls = tls

    def _encoded(self, request: Request) -> bytes:
        headers = [("host", self._address), *request.headers]
        if request.method == "POST":
            headers += [("content-type", "application/json"), ("content-length", str(len(request.body)))]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return f"{request.method} {request.path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + request.body

    def _unavailable(self, error: BaseException) -> Unavailable:
        return Unavailable(f"no server answers at {self._address} ({str(error) or type(error).__name__})")

    def _no_connection(self) -> OSError:
        return OSError(f"no connection within {self._connect_seconds:g} s")


class Connections(_Address):
    """For any number of threads: a call holds one connection, and leaves it for the next."""

    def __init__(self, address: str, connect_seconds: float, tls: ssl.SSLContext | None = None):
        super().__init__(address, connect_seconds, tls)
        self._idle: list[socket.socket] = []

    def send(self, request: Request, deadline: Deadline) -> Reply:
        """Raises Unavailable, DeadlineExceeded."""
        connection = None
        try:
            connection = self._kept() or self._connected(deadline)
            connection.settimeout(deadline.left())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(self._encoded(request))  # a server may refuse a body before it has read all of it
            arrival = _Arrival()
            while not arrival.complete:
                connection.settimeout(deadline.left())
                arrival.feed(connection.recv(_CHUNK))
            if arrival.keeps_alive:
                self._idle.append(connection)
                connection = None
            return arrival.reply()
        except TimeoutError:
            raise deadline.exceeded() from None
        except OSError as error:
            raise self._unavailable(error) from None
        finally:
            if connection:
                connection.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _kept(self) -> socket.socket | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            waiting = select.poll()
            waiting.register(connection, select.POLLIN)
            if not waiting.poll(0):  # else the server closed it, or said what nobody asked
                return connection
            connection.close()

    def _connected(self, deadline: Deadline) -> socket.socket:
        try:
            connection = self._reached(time.monotonic() + min(self._connect_seconds, deadline.left()))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._tls.wrap_socket(connection, server_hostname=self._host) if self._tls else connection
        except TimeoutError:
            deadline.left()
            raise self._no_connection() from None

    def _reached(self, end: float) -> socket.socket:
        """The first of the host's addresses that answers: all of them together have until `end`. Raises OSError."""
        failure: OSError = TimeoutError()
        for family, kind, protocol, _, address in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM):
            if (left := end - time.monotonic()) <= 0:
                break
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(left)
                connection.connect(address)
                connection.settimeout(max(0.001, end - time.monotonic()))  # for the handshake of TLS
                return connection
            except OSError as error:
                connection.close()
                failure = error
        raise failure


class AsyncConnections(_Address):
    """For the tasks of one event loop."""

    def __init__(self, address: str, connect_seconds: float, tls: ssl.SSLContext | None = None):
        super().__init__(address, connect_seconds, tls)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, request: Request, deadline: Deadline) -> Reply:
        """Raises Unavailable, DeadlineExceeded."""
        writer = None
        try:
            async with asyncio.timeout(deadline.left()):
                reader, writer = self._kept() or await self._connected()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    writer.write(self._encoded(request))
                    await writer.drain()
                arrival = _Arrival()
                while not arrival.complete:
                    arrival.feed(await reader.read(_CHUNK))
            if arrival.keeps_alive:
                self._idle.append((reader, writer))
                writer = None
            return arrival.reply()
        except TimeoutError:
            raise deadline.exceeded() from None
        except OSError as error:
            raise self._unavailable(error) from None
        finally:
            if writer:
                writer.transport.abort()

    async def close(self) -> None:
        while self._idle:
            writer = self._idle.pop()[1]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _kept(self) -> Any:
        while self._idle:
            reader, writer = self._idle.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.close()
        return None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(self._connect_seconds):
                return await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=2**20)
        except TimeoutError:
            raise self._no_connection() from None


def connect(address: str, connect_seconds: float, tls: Tls | None, asyncio: bool) -> Connections | AsyncConnections:
    """Nothing is sent yet. Raises OSError for certificates that cannot be read, ValueError for the address."""
    context = None
    if tls:
        context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.certificate_file:
            context.load_cert_chain(tls.certificate_file, tls.key_file)
    return (AsyncConnections if asyncio else Connections)(address, connect_seconds, context)
