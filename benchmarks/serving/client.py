"""Claim: over REST the client costs its process less than an HTTP library alone would.

    python benchmarks/serving/client.py [--requests 2000] [--rounds 5]

Microseconds of the client's own CPU for a predict of one user and item, one request after another, by `serving.client`
blocking and with asyncio; beside it the same bytes sent and read by httpx and by grpcio alone, whose answers nobody
looks into. The client has one core and the server the other; medians over turns.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import exports
import grpc
import httpx
import peers
from machine import LOAD_CORE, serving
from report import heading, table

from serving.client import AsyncClient, Client

METHOD = "/tensorflow.serving.PredictionService/Predict"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="of one turn (2000)")
    parser.add_argument("--rounds", type=int, default=5, help="turns; medians are compared (5)")
    options = parser.parse_args()
    heading("CPU of a client, one request after another")
    with tempfile.TemporaryDirectory() as name:
        pairs, ratings = exports.ratings(Path(name))
        os.sched_setaffinity(0, {LOAD_CORE})
        with serving(Path(name)) as (process, rest, rpc):
            way = peers.OURS.ways[0]
            process.wait_for(lambda: way.right(rest, pairs, ratings) and bool(peers.rpc_answer(rpc, pairs, ratings)))
            (user, item), url = pairs[0], f"http://{rest}{way.path}"
            inputs, body, message = (
                {"user_id": [user], "item_id": [item]},
                way.bodies(pairs)[0],
                peers.message(*pairs[0]),
            )
            with (
                Client(rest) as by_rest,
                Client(rpc, "grpc") as by_rpc,
                httpx.Client(trust_env=False) as library,
                grpc.insecure_channel(rpc) as channel,
            ):
                async with (
                    AsyncClient(rest) as later_by_rest,
                    AsyncClient(rpc, "grpc") as later_by_rpc,
                    httpx.AsyncClient(trust_env=False) as later_library,
                ):
                    call = channel.unary_unary(METHOD)
                    blocking: dict[str, Callable[[], object]] = {
                        "serving.client, REST": lambda: by_rest.predict("ratings", inputs),
                        "httpx alone": lambda: library.post(url, content=body),
                        "serving.client, gRPC": lambda: by_rpc.predict("ratings", inputs),
                        "grpcio alone": lambda: call(message),
                    }
                    awaited: dict[str, Callable[[], Awaitable[object]]] = {
                        "serving.client, REST": lambda: later_by_rest.predict("ratings", inputs),
                        "httpx alone": lambda: later_library.post(url, content=body),
                        "serving.client, gRPC": lambda: later_by_rpc.predict("ratings", inputs),
                    }
                    costs: dict[tuple[str, str], list[float]] = {}
                    for turn in range(options.rounds + 1):  # the first warms up
                        for who, ask in blocking.items():
                            began = time.process_time()
                            for _ in range(options.requests):
                                ask()
                            _note(costs, turn, (who, "blocking"), began, options.requests)
                        for who, ask in awaited.items():
                            began = time.process_time()
                            for _ in range(options.requests):
                                await ask()
                            _note(costs, turn, (who, "asyncio"), began, options.requests)
    micros = {key: statistics.median(each) for key, each in costs.items()}
    rows = [[who, micros[who, "blocking"], micros.get((who, "asyncio"), "-")] for who in blocking]
    table(("", "blocking, µs a request", "asyncio, µs a request"), rows)


def _note(costs: dict, turn: int, key: tuple[str, str], began: float, requests: int) -> None:
    if turn:
        costs.setdefault(key, []).append((time.process_time() - began) / requests * 1e6)


if __name__ == "__main__":
    asyncio.run(main())
