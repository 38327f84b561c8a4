"""HTTP of both ports: what an answer is, how it is sent, and the uvicorn server."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import uvicorn

from serving.server.access import rest_tls
from serving.server.connection import LARGEST_HEAD, Connection, answered
from serving.server.flags import Flags

DRAIN_SECONDS = 10
_TICKS = 3  # between two looks for clients that send nothing, or too slowly

Application = Callable[[Any, Any, Any], Awaitable[None]]  # of ASGI
Stop = Callable[[], Awaitable[None]]


class Reply(NamedTuple):
    text: bytes
    status: int = 200
    media: bytes = b"application/json"
    retry_after: int | None = None


async def answer(send: Any, reply: Reply, extra: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """`send` is ASGI's; `extra` are further headers."""
    headers = [(b"content-type", reply.media), (b"content-length", b"%d" % len(reply.text)), *extra]
    if reply.retry_after is not None:
        headers.append((b"retry-after", b"%d" % reply.retry_after))
    if answered(send, reply.status, headers, reply.text):
        return
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.text})


class _Server(uvicorn.Server):
    def __init__(self, settings: uvicorn.Config, arrival_seconds: float):
        super().__init__(settings)
        self._arrival_seconds = arrival_seconds

    async def on_tick(self, counter: int) -> bool:  # ten times a second
        for connection in list(self.server_state.connections) if counter % _TICKS == 0 else ():
            if isinstance(connection, Connection):
                connection.end_idle()
                if self._arrival_seconds:
                    connection.end_waiting(self._arrival_seconds)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process handles them, for all ports


async def start(application: Application, held: socket.socket, flags: Flags) -> Stop:
    """Serves on a port that `ports.hold` took; returns what stops it, after the requests under way. Raises OSError
    when the port was taken after all, and ConfigError for certificates that cannot be read."""
    settings = uvicorn.Config(
        application,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody asks who the client was
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    settings.load()
    settings.ssl = rest_tls(flags)
    head = LARGEST_HEAD if flags.max_body_bytes else 0
    settings.http_protocol_class = partial(Connection, most=flags.max_connections, largest_head=head)  # type: ignore[assignment]
    held.listen(settings.backlog)
    server = _Server(settings, flags.max_arrival_seconds)
    running = asyncio.create_task(server.serve(sockets=[held]))

    async def stop() -> None:
        server.should_exit = True
        await running

    return stop
