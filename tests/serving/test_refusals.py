"""What gRPC refuses: before it reads, while it reads; a server in this process over a shell of a model."""

import asyncio
import contextlib

import grpc
import pytest
from tensorflow_serving.apis import predict_pb2

from serving.server import rpc
from serving.server.backlog import Backlog
from serving.server.engine import Engine
from serving.server.limits import Limits
from serving.server.policy import Policy
from tests.serving.shell_servable import Models, Shell

PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"


@contextlib.asynccontextmanager
async def serving(limits=None, **options):
    engine = Engine(Models(Shell()), policy=Policy(limits or Limits()), **options)
    server, _ = rpc.build(engine)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield engine, channel, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
        engine.close()


async def refused(call) -> tuple[str, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 20)
    error = caught.value
    return error.code().name, error.details(), dict(error.trailing_metadata()).get("retry-after", "")


async def nothing():
    await asyncio.Event().wait()
    yield b""


def test_what_there_is_no_room_for_is_refused_without_its_message():
    async def play():
        async with serving(max_queued=1) as (engine, channel, _):
            engine._under_way = 1
            shed = await refused(channel.stream_unary(PREDICT)(nothing(), timeout=20))
            engine._under_way = 0
            return shed, await refused(channel.unary_unary(PREDICT)(b"", timeout=20))

    shed, after = asyncio.run(play())
    assert shed == (
        "RESOURCE_EXHAUSTED",
        "The server is overloaded: 1 requests are under way, which is the most it takes.",
        "1",
    )
    assert after[0] == "INVALID_ARGUMENT"


def test_what_would_wait_too_long_is_refused_without_its_message(monkeypatch):
    asked = []
    monkeypatch.setattr(Backlog, "is_hopeless", lambda self, seconds: bool(asked.append(seconds)) or seconds < 5)

    async def play():
        async with serving(max_queued=9) as (_, channel, _):
            hopeless = await refused(channel.stream_unary(PREDICT)(nothing(), timeout=4))
            return hopeless, await refused(channel.unary_unary(PREDICT)(b"", timeout=20))

    hopeless, after = asyncio.run(play())
    assert hopeless == ("DEADLINE_EXCEEDED", "Timed out waiting for notification", "")
    assert after[0] == "INVALID_ARGUMENT"
    assert 3 < asked[0] < 4.5


def test_a_message_that_does_not_come_is_not_waited_for():
    async def play():
        async with serving(Limits(arrival_seconds=0.1)) as (_, channel, _):
            return await refused(channel.stream_unary(PREDICT)(nothing(), timeout=20))

    assert asyncio.run(play()) == ("DEADLINE_EXCEEDED", "The request did not arrive in time.", "")


def test_a_call_without_a_message_is_invalid():
    async def none():
        return
        yield

    async def play():
        async with serving(max_queued=9) as (_, channel, _):
            return [await refused(channel.stream_unary(path)(none(), timeout=20)) for path in (PREDICT, STATUS)]

    assert asyncio.run(play()) == [("INVALID_ARGUMENT", "The request has no message.", "")] * 2


def test_without_bounds_a_request_is_read_at_once_and_gets_the_same_answers():
    async def play():
        told = []
        for bounds in ({}, {"max_queued": 9}):
            async with serving(**bounds) as (_, channel, _):
                told.append(
                    [await refused(channel.unary_unary(path)(b"\xff", timeout=20)) for path in (PREDICT, STATUS)]
                )
        return told

    plain, bounded = asyncio.run(play())
    assert plain == bounded
    assert plain[0][0] == "INVALID_ARGUMENT"


def test_a_compressed_message_may_not_grow_beyond_the_limit():
    request = predict_pb2.PredictRequest()
    request.inputs["x"].tensor_content = bytes(2**20)
    message = request.SerializeToString()  # about 1 KiB, compressed

    async def play():
        told = []
        for limit in (2**20, 2**21):
            async with serving(Limits(body_bytes=limit)) as (_, channel, _):
                call = channel.unary_unary(PREDICT)(message, timeout=20, compression=grpc.Compression.Gzip)
                told.append((await refused(call))[:2])
        return told

    (code, message_of_core), (code_within, _) = asyncio.run(play())
    assert (code, code_within) == ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")
    assert "larger than max" in message_of_core


def test_a_connection_beyond_the_bound_is_not_taken():
    async def play():
        async with serving(Limits(connections=1)) as (_, channel, address):
            await refused(channel.unary_unary(PREDICT)(b"", timeout=20))
            options = [("grpc.use_local_subchannel_pool", 1)]  # else it would share the connection
            async with grpc.aio.insecure_channel(address, options) as second:
                return await refused(second.unary_unary(PREDICT)(b"", timeout=0.5))

    assert asyncio.run(play())[0] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
