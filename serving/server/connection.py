"""An HTTP connection of uvicorn's that takes nothing but HTTP/1, and does not wait for ever."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_TIMED_OUT = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: 48\r\nconnection: close\r\n\r\n"
    b'{"error": "The request did not arrive in time."}'
)


class Connection(HttpToolsProtocol):
    """Beyond `most` connections to its server (0: no bound) it is closed as soon as it is made."""

    def __init__(self, *arguments: Any, most: int = 0, **named: Any):
        super().__init__(*arguments, **named)
        self._most = most
        self._since = self.loop.time()  # the client's turn, if it is its turn
        self._begun = False  # a request, which may not be whole
        self._chunk = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._most and len(self.connections) > self._most:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._chunk = data
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._since, self._begun = self.loop.time(), True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
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
        super().on_response_complete()

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
