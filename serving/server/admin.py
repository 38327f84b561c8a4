"""The port for operators: metrics, health and models, apart from the data. Nothing here changes anything."""

import logging
from typing import Any

from serving.server import http
from serving.server.access import Token
from serving.server.errors import RequestError
from serving.server.flags import Flags
from serving.server.http import Application, Reply, Stop
from serving.server.pages import OPEN, Page, Pages
from serving.server.ports import hold, taken

log = logging.getLogger("serving")


def application(pages: Pages, token: Token | None) -> Application:
    """An ASGI application; a token is asked for everything but what a probe needs."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        try:
            if token and path not in OPEN:
                token.check(dict(scope["headers"]).get(b"authorization"))
            page = pages.answer(scope["method"], path, scope["query_string"], operator=True)
        except RequestError as error:
            page = Page(error.http, "text/plain", f"{error}\n")
        page = page or Page(404, "text/plain", "Not Found\n")
        await http.answer(send, Reply(page.text.encode(), page.status, page.media.encode()))

    return application


async def start(flags: Flags, pages: Pages, token: Token | None) -> Stop:
    """Listens on --admin_port; returns what stops it. Raises ConfigError for a port that is taken."""
    held = hold(flags.bind, flags.admin_port, "--admin_port")
    try:
        stop = await http.start(application(pages, token), held, flags)
    except OSError as error:
        raise taken(flags.bind, flags.admin_port, "--admin_port", error) from None
    log.info("metrics, health and models on %s:%d", flags.bind, flags.admin_port)
    return stop
