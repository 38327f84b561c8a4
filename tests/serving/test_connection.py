"""What an HTTP connection takes, for how long it waits, and how many there may be: raw bytes on a real port."""

import asyncio
import contextlib
import re
import time
from functools import partial

import pytest
import uvicorn

from serving.server import http
from serving.server.flags import Flags
from serving.server.http import Reply
from serving.server.ports import hold

SECONDS = 0.2
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


async def application(scope, receive, send):
    message = await receive()
    while message.get("more_body"):
        message = await receive()
    if message["type"] == "http.request":
        await asyncio.sleep(3 * SECONDS if scope["path"] == "/slow" else 0)
        await http.answer(send, Reply(b"{}"))


@contextlib.asynccontextmanager
async def serving(**flags):
    held = hold("127.0.0.1", 0, "--rest_api_port")
    address = held.getsockname()
    stop = await http.start(application, held, Flags(**flags))
    try:
        yield address
    finally:
        await stop()


async def told(address, *pieces: bytes, pause: float = 0.02) -> bytes:
    """All that is answered to these pieces, until the server closes the connection."""
    reader, writer = await asyncio.open_connection(*address)

    async def send():
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    sending = asyncio.create_task(send())
    try:
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(reader.read(), 20)
        return b""
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


def asked(*pieces: bytes, pause: float = 0.02, **flags) -> tuple[bytes, float]:
    async def play():
        async with serving(**flags) as address:
            began = time.monotonic()
            return await told(address, *pieces, pause=pause), time.monotonic() - began

    return asyncio.run(play())


@pytest.mark.parametrize(
    "line",
    [b"GET /", b"GET / HTTP/0.9", b"GET / HTTP/2.0", b"GET / RTSP/1.0", b"OPTIONS / RTSP/1.0", b"SOURCE / ICE/1.0"],
)
def test_what_is_not_http_1_is_refused(line):
    answer, _ = asked(line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_http_1_0_is_answered_even_when_its_body_reads_like_another_protocol():
    answer, _ = asked(b"POST / HTTP/1.0\r\ncontent-length: 16\r\n\r\nGET / RTSP/1.0\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


BEGUN = {
    "head": ([b"GET / HTTP/1.1\r\n"], b"x: y\r\n"),
    "body": ([b"POST / HTTP/1.1\r\ncontent-length: 1000\r\n\r\n"], b"x"),
    "second_head": ([GET, b"GET /"], b"x"),
}


@pytest.mark.parametrize(("first", "next_one"), BEGUN.values(), ids=BEGUN)
def test_a_request_that_stops_coming_is_answered_with_408(first, next_one):
    answer, seconds = asked(*first, next_one, max_arrival_seconds=SECONDS)
    assert answer.split(b"HTTP/1.1 ")[-1].startswith(b"408 ")
    assert seconds < 10


@pytest.mark.parametrize(("first", "next_one"), BEGUN.values(), ids=BEGUN)
def test_a_request_that_trickles_in_is_ended_as_well(first, next_one):
    """The 408 may be lost to a client that goes on sending."""
    answer, seconds = asked(*first, *[next_one] * 900, max_arrival_seconds=SECONDS)
    assert answer.split(b"HTTP/1.1 ")[-1][:4] in (b"", b"408 ", b"200 ")
    assert seconds < 10


@pytest.mark.parametrize("pieces", [[], [b"\r\n"] * 1000], ids=["silence", "empty_lines"])
def test_a_connection_without_a_request_is_closed_without_a_word(pieces):
    answer, seconds = asked(*pieces, max_arrival_seconds=SECONDS)
    assert answer == b""
    assert seconds < 10


def test_a_request_that_is_whole_may_take_longer_than_its_arrival():
    answer, seconds = asked(b"GET /slow HTTP/1.0\r\n\r\n", max_arrival_seconds=SECONDS)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert seconds > SECONDS


def test_one_connection_more_than_the_bound_is_closed_until_another_one_goes():
    async def play():
        async with serving(max_connections=2) as address:
            first, second = [await asyncio.open_connection(*address) for _ in range(2)]
            second[1].write(GET)
            await second[0].readuntil(b"{}")
            refused = await told(address, GET)
            first[1].close()
            answer = b""
            while not answer:
                answer = await told(address, GET.replace(b"1.1", b"1.0"))
            second[1].close()
            return refused, answer

    refused, answer = asyncio.run(asyncio.wait_for(play(), 20))
    assert refused == b""
    assert answer.startswith(b"HTTP/1.1 200 ")


LAST = b"GET / HTTP/1.0\r\n\r\n"
BODY = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [GET, LAST],
        [GET + GET.replace(b"/ ", b"/slow ") + GET + LAST],
        [BODY + b"\r\nbody", BODY + b"\r\nbo", b"dy", LAST],
        [BODY + b"expect: 100-continue\r\n\r\n", b"body", LAST],
        [BODY + b"connection: close\r\n\r\nbody"],
        [b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n", LAST],
    ],
    ids=["one_by_one", "pipelined", "bodies", "expecting", "closing", "head"],
)
def test_an_answer_in_one_write_is_what_the_messages_of_asgi_make(pieces, monkeypatch):
    at_once, _ = asked(*pieces)
    monkeypatch.setattr(http, "answered", lambda *_: False)
    by_messages, _ = asked(*pieces)
    assert _undated(at_once) == _undated(by_messages)
    assert at_once.count(b"HTTP/1.1 200 ") == b"".join(pieces).count(b" HTTP/1.")


def _undated(answers: bytes) -> bytes:
    return re.sub(rb"date: [^\r]*\r\n", b"", answers)


def test_a_connection_that_asks_no_more_is_closed_after_a_while_and_not_while_it_waits(monkeypatch):
    monkeypatch.setattr(uvicorn, "Config", partial(uvicorn.Config, timeout_keep_alive=SECONDS))
    answer, seconds = asked(GET, GET.replace(b"/ ", b"/slow "))
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert 4 * SECONDS < seconds < 10


@pytest.mark.parametrize(("size", "status"), [(50_000, b"200"), (200_000, b"431")])
def test_a_head_is_bounded_where_bodies_are(size, status):
    async def ask():
        async with serving(max_body_bytes=1000) as address:
            pieces = [b"x" * 10_000] * (size // 10_000)
            return await told(address, b"GET / HTTP/1.1\r\nconnection: close\r\na: ", *pieces, b"\r\n\r\n", pause=0.001)

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 " + status)
