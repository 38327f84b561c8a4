"""Pages of another origin: what a browser is told."""

import asyncio

import httpx
import pytest

from serving.server import rest
from serving.server.engine import Engine
from serving.server.lifecycle import Models


def ask(method: str, cors: bool, **headers: str) -> httpx.Response:
    async def answer() -> httpx.Response:
        engine = Engine(Models(None, lambda load: load()))
        transport = httpx.ASGITransport(rest.application(engine, 1000, cors=cors))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            response = await client.request(method, "/v1/models/pair", headers=headers)
        engine.close()
        return response

    return asyncio.run(answer())


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_answers_may_be_read_from_any_origin_where_the_flag_says_so(method):
    names = ("access-control-allow-origin", "access-control-allow-methods", "access-control-allow-headers")
    headers = ask(method, cors=True, origin="https://a.example").headers
    assert [headers[name] for name in names] == ["*", "POST, GET", "Content-Type"]
    assert not set(names) & ask(method, cors=False, origin="https://a.example").headers.keys()


def test_a_preflight_without_an_origin_is_refused():
    assert ask("OPTIONS", cors=True).status_code == 400
    assert ask("OPTIONS", cors=True, origin="ftp://a.example").status_code == 400
    assert ask("OPTIONS", cors=False, origin="http://a.example").status_code == 200
