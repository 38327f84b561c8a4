"""An HTTP connection of uvicorn's that takes nothing but HTTP/1, and does not wait for ever."""

import asyncio
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

LARGEST_HEAD = 2**16  # bytes of a request's line and headers, where bodies are bounded, too
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\ncontent-length: 50\r\n"
    b'connection: close\r\n\r\n{"error": "The head of the request is too large."}'
)
_TIMED_OUT = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: 48\r\nconnection: close\r\n\r\n"
    b'{"error": "The request did not arrive in time."}'
)


class Connection(HttpToolsProtocol):
    """Beyond `most` connections to its server (0: no bound) it is closed as soon as it is made, and with 431 when a
    head is larger than `largest_head` (0: no bound)."""

    def __init__(self, *arguments: Any, most: int = 0, largest_head: int = 0, **named: Any):
        super().__init__(*arguments, **named)
        self._most, self._largest_head = most, largest_head
        self._head: int | None = None  # bytes of the head that is arriving; None between two
        self._since = self.loop.time()  # the client's turn, if it is its turn
        self._begun = False  # a request, which may not be whole
        self._chunk = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._most and len(self.connections) > self._most:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._chunk = data
        if self._head is not None and self._largest_head:
            self._head += len(data)
            if self._head > self._largest_head:
                self.transport.write(_TOO_LARGE)
                self.transport.close()
                self._head = None
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._since, self._begun = self.loop.time(), True
        self._head = len(self._chunk)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = None
        version = self.parser.get_http_version()
        if version != "1.1" and (version != "1.0" or self._is_other()):
            raise ValueError("not HTTP/1")  # the parser makes it an error of its own, which is answered with 400
        super().on_headers_complete()

    def _is_other(self) -> bool:
        """Whether it is RTSP or ICE, which the parser takes for 1.0; one that came in pieces passes."""
        line = self.parser.get_method() + b" " + self.url
        return self._chunk.lstrip(b"\r\n").startswith((line + b" RTSP/", line + b" ICE/"))

    def on_response_complete(self) -> None:
        self._since, self._begun = self.loop.time(), False
        if self.cycle.more_body or self.pipeline or self.transport.is_closing():
            super().on_response_complete()
        else:  # no timer: `end_idle` looks
            self.server_state.total_requests += 1
            self.flow.resume_reading()

    def end_idle(self) -> None:
        """Closes the connection when nothing has come since its last answer for as long as uvicorn keeps one alive."""
        cycle = self.cycle
        if cycle is None or not cycle.response_complete or cycle.more_body or self._begun:
            return
        if self.loop.time() - self._since >= self.timeout_keep_alive:
            self.transport.close()

    def end_waiting(self, seconds: float) -> None:
        """Closes the connection when what it is to send next has not come for `seconds`: a request, or what is left of
        one, however many bytes of it came. 408 tells a client that has begun."""
        cycle = self.cycle
        asked = cycle is not None and not cycle.response_complete and not cycle.more_body
        if asked or self.loop.time() - self._since < seconds:
            return
        if self.transport.is_closing():  # and the client does not read the rest
            self.transport.abort()
            return
        if self._begun and not (cycle is not None and cycle.response_started and not cycle.response_complete):
            self.transport.write(_TIMED_OUT)
        self.transport.close()


def received(receive: Any) -> bytes | None:
    """The body of the request that `receive` of ASGI belongs to, when all of it is there; None: it has to be awaited,
    which takes three coroutines."""
    cycle = getattr(receive, "__self__", None)
    if type(cycle) is not RequestResponseCycle or cycle.more_body or cycle.disconnected or cycle.flow.read_paused:
        return None
    body, cycle.body = bytes(cycle.body), bytearray()
    cycle.message_event.clear()
    return body


def answered(send: Any, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
    """Whether the answer to the request that `send` of ASGI belongs to was written, in one piece. It takes less than
    the two messages of ASGI, to which everything out of the ordinary is left."""
    cycle = getattr(send, "__self__", None)
    if (
        type(cycle) is not RequestResponseCycle
        or cycle.response_started
        or cycle.waiting_for_100_continue
        or cycle.disconnected
        or cycle.flow.write_paused
        or not cycle.keep_alive
        or cycle.scope["method"] == "HEAD"
    ):
        return False
    lines = [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
    cycle.transport.write(b"".join((STATUS_LINE[status], *lines, b"\r\n", body)))
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    return True
