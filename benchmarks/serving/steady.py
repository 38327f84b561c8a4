"""Requests without a pause from a few threads, REST and gRPC, each answer checked to come from one version as a whole.

python steady.py REST_ADDRESS RPC_ADDRESS THREADS SECONDS   ->   a line "asking"; JSON, when stdin ends

For the model `numbered`, SECONDS at most. Prints {"asked", "failed", "wrong": [some of those], "versions": {version:
answers}, "p50", "p99", "longest"}, times in milliseconds.
"""

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import messages
from machine import LOAD_CORE
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

ROWS = [1.0, 2.0, 3.0]


@contextlib.contextmanager
def asking(rest: str, rpc: str, threads: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Asks from the load's core while the block runs, `seconds` at most; what was told is in the dict afterwards."""
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, __file__, rest, rpc, str(threads), str(seconds)]
    told: dict[str, Any] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "asking\n"
            yield told
        finally:
            output, _ = process.communicate()  # closes its stdin
    told |= json.loads(output)


class _Asked:
    """What the threads have been told."""

    def __init__(self) -> None:
        self.versions: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.seconds: list[float] = []

    def ask(self, call) -> None:
        start = time.perf_counter()
        try:
            versions, sums = call()
            self.seconds.append(time.perf_counter() - start)
            if len(set(versions)) != 1 or sums != [x + versions[0] for x in ROWS]:
                raise ValueError(f"versions {versions} and sums {sums}")
            self.versions[versions[0]] += 1
        except Exception as error:
            self.wrong.append(repr(error)[:300])


def _over_rest(address: str):
    connection = http.client.HTTPConnection(address, timeout=30)
    body = json.dumps({"instances": ROWS})

    def call() -> tuple[list, list]:
        try:
            connection.request("POST", "/v1/models/numbered:predict", body)
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise ValueError(f"{response.status} {text!r}")
            rows = json.loads(text)["predictions"]
        except Exception:
            connection.close()  # the next request opens it again
            raise
        return [row["version"] for row in rows], [row["sum"] for row in rows]

    return call


def _over_rpc(address: str):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))
    request = predict_pb2.PredictRequest.FromString(messages.request("numbered", x=ROWS))

    def call() -> tuple[list, list]:
        answer = stub.Predict(request, timeout=30)
        return [float(answer.model_spec.version.value), *messages.values(answer, "version")], messages.values(
            answer, "sum"
        )

    return call


def _ask(rest: str, rpc: str, threads: int, seconds: float) -> dict:
    asked, stop = _Asked(), threading.Event()

    def work(call) -> None:
        end = time.monotonic() + seconds
        while not stop.is_set() and time.monotonic() < end:
            asked.ask(call)

    calls = [_over_rest(rest) if n % 2 else _over_rpc(rpc) for n in range(threads)]
    workers = [threading.Thread(target=work, args=(call,)) for call in calls]
    for worker in workers:
        worker.start()
    print("asking", flush=True)
    sys.stdin.read()
    stop.set()
    for worker in workers:
        worker.join()
    times = sorted(1e3 * spent for spent in asked.seconds) or [0.0]
    return {
        "asked": len(asked.wrong) + asked.versions.total(),
        "versions": {int(version): count for version, count in sorted(asked.versions.items())},
        "failed": len(asked.wrong),
        "wrong": asked.wrong[:5],
        "p50": times[len(times) // 2],
        "p99": times[int(0.99 * (len(times) - 1))],
        "longest": times[-1],
    }


if __name__ == "__main__":
    rest, rpc, threads, seconds = sys.argv[1:]
    json.dump(_ask(rest, rpc, int(threads), float(seconds)), sys.stdout)
