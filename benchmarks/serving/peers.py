"""The servers that are asked for ratings: ours, an empty one, and those of others, each in the ways it advises."""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import messages
from machine import Process, free_ports, running

ANSWERING = Path(__file__).parent / "answering"
Command = Callable[[str, int, Path], list]
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Way:
    """A URL path, the body that asks for a user and an item, and the rating in the answer to it."""

    path: str
    body: Callable[[str, str], object]
    rating: Callable[[Any], float]

    def bodies(self, pairs: Pairs) -> list[bytes]:
        return [json.dumps(self.body(user, item)).encode() for user, item in pairs]

    def right(self, address: str, pairs: Pairs, ratings: Sequence[float]) -> bool:
        """Whether the first answers are the ratings; an echo, whose rating is NaN, only has to answer."""
        told = [self.rating(post(f"http://{address}{self.path}", body)) for body in self.bodies(pairs[:8])]
        return all(math.isnan(a) or abs(a - b) < 1e-3 for a, b in zip(told, ratings, strict=False))


@dataclass(frozen=True)
class Peer:
    """`command` makes its command line from an interpreter that has `packages`, a port, and the folder of models."""

    name: str
    packages: tuple[str, ...]
    command: Command
    ways: tuple[Way, ...]


def _pair(user: str, item: str) -> dict[str, str]:
    return {"user_id": user, "item_id": item}


def _rows(user: str, item: str) -> dict[str, list]:
    return {"instances": [_pair(user, item)]}


def _rated(*paths: str) -> tuple[Way, ...]:
    return tuple(Way(path, _pair, lambda told: told["rating"]) for path in paths)


def _ours(_: str, port: int, models: Path) -> list:
    ports = [f"--rest_api_port={port}", "--port=0"]
    return [sys.executable, "-m", "serving.server", f"--serving_root={models}", *ports, "--enable_batching"]


def _echo(_: str, port: int, models: Path) -> list:
    return [sys.executable, ANSWERING / "echo_rest.py", port]


def _fastapi(python: str, port: int, models: Path) -> list:
    return [python, ANSWERING / "fastapi_app.py", port, models]


def _bentoml(python: str, port: int, models: Path) -> list:
    serve = [python, "-m", "bentoml", "serve", "bentoml_service:Ratings", "--working-dir", ANSWERING]
    return ["env", f"MODELS={models}", "BENTOML_DO_NOT_TRACK=True", *serve, "--port", port, "--host", "127.0.0.1"]


def _litserve(python: str, port: int, models: Path) -> list:
    return [python, ANSWERING / "litserve_app.py", port, models]


OURS = Peer("ours", (), _ours, (Way("/v1/models/ratings:predict", _rows, lambda told: told["predictions"][0]),))
ECHO = Peer("uvicorn echo", (), _echo, (Way("/", _rows, lambda told: math.nan),))
SIGNATURE = Peer(
    "FastAPI + signature", ("fastapi", "tensorflow"), _fastapi, _rated("/signature/async", "/signature/def")
)
PREDICT = Peer("FastAPI + model.predict", ("fastapi", "tensorflow"), _fastapi, _rated("/predict/async", "/predict/def"))
BENTOML = Peer(
    "BentoML",
    ("bentoml", "tensorflow"),
    _bentoml,
    (
        Way("/on_loop", _pair, float),
        Way("/in_threads", _pair, float),
        Way("/batched", lambda *ids: {"pairs": [_pair(*ids)]}, lambda told: told[0]),
    ),
)
LITSERVE = Peer("LitServe", ("litserve", "tensorflow"), _litserve, _rated("/single", "/batched"))


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--peers",
        metavar="PYTHON",
        default=os.environ.get("PEERS_PYTHON", sys.executable),
        help="the interpreter that has the peers, tensorflow among them ($PEERS_PYTHON; this one)",
    )


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """The version of each package that the interpreter has, as it would import it; without those that it lacks.
    Raises SystemExit when there is no such interpreter."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.name.lower(): d.version for d in reversed(list(m.distributions()))}\n"
        "print(json.dumps({name: have[name] for name in sys.argv[1:] if name in have}))"
    )
    try:
        told = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"--peers {python} is no interpreter that runs: {error}") from None
    return json.loads(told)


@contextlib.contextmanager
def started(
    peers: Sequence[Peer], python: str, models: Path, pairs: Pairs, ratings: Sequence[float]
) -> Iterator[dict[str, tuple[Process, str]]]:
    """The process and the address of each peer, by name, all of whose ways have given right answers."""
    found: dict[Command, tuple[Process, str]] = {}
    with contextlib.ExitStack() as stack:
        for peer in peers:
            if peer.command not in found:
                port = free_ports(1)[0]
                process = stack.enter_context(running(peer.name, peer.command(python, port, models), models))
                found[peer.command] = process, f"127.0.0.1:{port}"
        for peer in peers:
            process, address = found[peer.command]
            for way in peer.ways:
                process.wait_for(lambda way=way, address=address: way.right(address, pairs, ratings))
        yield {peer.name: found[peer.command] for peer in peers}


@contextlib.contextmanager
def empty_rpc(loop: str, message: bytes, answer: bytes, folder: Path) -> Iterator[tuple[Process, str]]:
    """A PredictionService on `loop` (uvloop or asyncio) that gives `answer` to every request, and its address."""
    port, ready = free_ports(1)[0], folder / "answer.binpb"
    ready.write_bytes(answer)
    command = [sys.executable, ANSWERING / "echo_rpc.py", port, loop, ready]
    with running(f"empty gRPC server on {loop}", command, folder) as process:
        process.wait_for(lambda: messages.answer(f"127.0.0.1:{port}", message).SerializeToString() == answer)
        yield process, f"127.0.0.1:{port}"


def message(user: str, item: str) -> bytes:
    """What a way's body is in REST."""
    return messages.request("ratings", user_id=[user.encode()], item_id=[item.encode()])


def rpc_answer(address: str, pairs: Pairs, ratings: Sequence[float]) -> bytes | None:
    """Our gRPC answer to the first pair, serialized; None when it is wrong."""
    answer = messages.answer(address, message(*pairs[0]))
    return answer.SerializeToString() if abs(messages.values(answer, "rating")[0] - ratings[0]) < 1e-3 else None


def post(url: str, body: bytes, timeout: float = 30) -> Any:
    """The answer's JSON. Raises URLError for anything but 200."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.loads(answer.read())
