"""The port for operators: metrics, health and models, apart from the data. Nothing here changes anything."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from starlette.responses import PlainTextResponse, Response

from serving.server.access import Token, rest_tls
from serving.server.errors import RequestError
from serving.server.flags import Flags
from serving.server.pages import OPEN, Pages
from serving.server.ports import hold

log = logging.getLogger("serving")


def application(pages: Pages, token: Token | None) -> Callable[..., Awaitable[None]]:
    """An ASGI application; a token is asked for everything but what a probe needs."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        try:
            if token and path not in OPEN:
                token.check(dict(scope["headers"]).get(b"authorization"))
            page = pages.answer(scope["method"], path, scope["query_string"], operator=True)
            response: Response = PlainTextResponse("Not Found\n", 404)
            if page:
                response = Response(page.text, page.status, media_type=page.media)
        except RequestError as error:
            response = PlainTextResponse(f"{error}\n", error.http)
        await response(scope, receive, send)

    return application


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process handles them


async def start(flags: Flags, pages: Pages, token: Token | None) -> Callable[[], Awaitable[None]]:
    """Listens on --admin_port; returns what stops it. Raises ConfigError for a port that is taken."""
    held = hold(flags.bind, flags.admin_port, "--admin_port")
    settings = uvicorn.Config(
        application(pages, token), lifespan="off", log_config=None, access_log=False, server_header=False
    )
    settings.load()
    settings.ssl = rest_tls(flags)
    server = _Server(settings)
    running = asyncio.create_task(server.serve(sockets=[held]))
    log.info("metrics, health and models on %s:%d", flags.bind, flags.admin_port)

    async def stop() -> None:
        server.should_exit = True
        await running

    return stop
