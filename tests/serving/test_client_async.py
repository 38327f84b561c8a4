"""The client with asyncio: the same calls, many at a time, and nothing left behind when one is given up."""

import asyncio
import inspect

import numpy as np
import pytest

from serving.client import AsyncClient, Client, DeadlineExceeded, InvalidRequest, NotFound, Unavailable


@pytest.fixture(params=["rest", "grpc"])
def connect(request, server):
    """connect(**options): a client of the running server; the last one closes what it opened."""

    def make(**options) -> AsyncClient:
        return AsyncClient(server.rest if request.param == "rest" else server.rpc, request.param, **options)

    return make


def test_awaited_answers_are_those_of_the_blocking_client(connect, server):
    async def ask():
        async with connect() as client:
            return (
                await client.predict("pair", {"a": [1, 2.5], "b": [2, 3]}),
                await client.predict("texts", {"text": ["bad", b"\xff\x00"]}),
                await client.status("pair"),
                await client.metadata("pair"),
            )

    pair, texts, status, metadata = asyncio.run(ask())
    with Client(server.rest) as client:
        expected = client.predict("pair", {"a": [1, 2.5], "b": [2, 3]})
        assert (status, metadata) == (client.status("pair"), client.metadata("pair"))
    assert {name: (a.dtype, a.tolist()) for name, a in pair.items()} == {
        name: (a.dtype, a.tolist()) for name, a in expected.items()
    }
    assert texts["same"].tolist() == [b"bad", b"\xff\x00"]


def test_each_of_many_calls_at_a_time_gets_its_own_answer(connect):
    async def ask():
        async with connect() as client:
            await client.metadata("pair")
            calls = (client.predict("pair", {"x": np.float32([i])}, "half") for i in range(64))
            return [outputs["y"].tolist() for outputs in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == [[i * 0.5 + 2] for i in range(64)]


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (NotFound, ("nobody", {"x": [1]})),
        (InvalidRequest, ("pair", {"x": ["one"]}, "half")),
        (InvalidRequest, ("pair", {"x": [1]}, "no_such_signature")),
    ],
)
def test_a_refusal_is_raised_where_it_is_awaited(connect, error, arguments):
    async def ask():
        async with connect() as client:
            await client.predict(*arguments)

    with pytest.raises(error):
        asyncio.run(ask())


def test_a_call_given_up_leaves_the_client_usable(connect):
    async def ask():
        async with connect() as client:
            await client.predict("pair", {"x": [1]}, "half")
            slow = asyncio.create_task(client.predict("pair", {"steps": np.int32(50_000)}, "slow"))
            await asyncio.sleep(0.01)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            return (await client.predict("pair", {"x": [1]}, "half"))["y"].tolist()

    assert asyncio.run(ask()) == [2.5]


def test_an_awaited_call_ends_at_its_deadline(connect):
    async def ask():
        async with connect() as client:
            await client.metadata("pair")
            await client.predict("pair", {"steps": np.int32(1_500_000)}, "slow", timeout=0.3)

    with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
        asyncio.run(ask())


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_missing_server_is_unavailable_here_too(protocol):
    async def ask():
        async with AsyncClient("127.0.0.1:1", protocol) as client:
            await client.status("m")

    with pytest.raises(Unavailable):
        asyncio.run(ask())


def test_both_clients_have_the_same_calls_with_the_same_parameters():
    def calls(kind: type) -> dict[str, inspect.Signature]:
        names = ["predict", "classify", "regress", "multi_inference", "status", "metadata", "reload"]
        return {name: inspect.signature(getattr(kind, name)) for name in names}

    assert calls(Client) == calls(AsyncClient)
    assert "output_filter" in calls(Client)["predict"].parameters
