"""Requests at a fixed pace, whether or not the earlier ones were answered: what a crowd of clients does.

python open_loop.py ADDRESS DEADLINE_MS RATE:SECONDS…   ->   JSON: [share of a core that this client took, phases]

Phases follow each other without a pause. A request is a Predict of the model `slow` with one number. It is told as
[when it was due, seconds after the first of its phase; how late it was sent, seconds; seconds until its answer; the
name of its gRPC status, or WRONG].
"""

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import messages
import uvloop
from machine import LOAD_CORE
from tensorflow_serving.apis import predict_pb2

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
Phases = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Told:
    due: float
    late: float
    seconds: float
    status: str


def run(address: str, deadline_ms: float, phases: Phases) -> tuple[float, list[list[Told]]]:
    """The client's share of its core, and for each phase (rate, seconds) its requests, in the order of their times."""
    paces = [f"{rate}:{seconds}" for rate, seconds in phases]
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, __file__, address, str(deadline_ms), *paces]
    patience = 120 + sum(seconds for _, seconds in phases)
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=patience).stdout
    busy, lists = json.loads(told)
    return busy, [[Told(*one) for one in phase] for phase in lists]


async def _send(address: str, timeout: float, phases: Phases) -> tuple[float, list[list]]:
    requests = [predict_pb2.PredictRequest.FromString(messages.request("slow", x=[n])) for n in range(100)]
    told: list[list] = [[] for _ in phases]
    async with grpc.aio.insecure_channel(address) as channel:
        predict = channel.unary_unary(
            _PREDICT, predict_pb2.PredictRequest.SerializeToString, predict_pb2.PredictResponse.FromString
        )
        await channel.channel_ready()

        async def one(phase: int, number: int, due: float, start: float) -> None:
            sent = time.perf_counter()
            try:
                answer = await predict(requests[number % 100], timeout=timeout)
                status = "OK" if messages.values(answer, "y") == [2 * (number % 100)] else "WRONG"
            except grpc.aio.AioRpcError as error:
                status = error.code().name
            told[phase].append((due, sent - start - due, time.perf_counter() - sent, status))

        began, cpu = time.perf_counter(), time.process_time()
        tasks, start = [], began
        for phase, (rate, seconds) in enumerate(phases):
            for number in range(int(rate * seconds)):
                due = number / rate
                await asyncio.sleep(max(0, start + due - time.perf_counter()))
                tasks.append(asyncio.create_task(one(phase, number, due, start)))
            start += seconds
        await asyncio.gather(*tasks)
        busy = (time.process_time() - cpu) / (time.perf_counter() - began)
    return busy, [sorted(phase) for phase in told]


def _main(address: str, deadline_ms: str, *paces: str) -> None:
    phases = [(float(rate), float(seconds)) for rate, _, seconds in (pace.partition(":") for pace in paces)]
    gc.freeze()  # TensorFlow's objects, which the messages bring along: to look through them takes 0.2 s
    gc.disable()
    json.dump(uvloop.run(_send(address, float(deadline_ms) / 1000, phases)), sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
