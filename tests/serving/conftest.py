"""Tiny SavedModels and one real server for all tests here."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.serving import example_models
from tests.serving.asgi import Rest

ROOT = Path(__file__).parents[2]
START_SECONDS = 200  # patience for TensorFlow's import on a busy machine; 5 on an idle one


@dataclass
class Server:
    """A server process, its addresses, the folder that it serves, and what it logged."""

    process: subprocess.Popen
    rest: str
    rpc: str
    root: Path
    log: Path

    def call(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> httpx.Response:
        return httpx.request(method, f"http://{self.rest}{path}", content=body, headers=headers, trust_env=False)

    def predict(self, model: str, body: str) -> httpx.Response:
        return self.call("POST", f"/v1/models/{model}:predict", body)

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        """The part of the log that matches; fails the test when it does not come."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.log.read_text())):
            if time.monotonic() > deadline or self.process.poll() is not None:
                pytest.fail(f"{pattern!r} not in the server's log:\n{self.log.read_text()}")
            time.sleep(0.02)
        return found.group()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start_server(folder: Path, root: Path, *flags: str) -> Server:
    rest, rpc = free_ports(2)
    log = folder / "server.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.server", f"--port={rpc}", "--rest_api_port", str(rest), *flags],
            cwd=ROOT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Server(process, f"127.0.0.1:{rest}", f"127.0.0.1:{rpc}", root, log)


def stop_server(server: Server) -> int:
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(timeout=20)
    finally:
        server.process.kill()


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory) -> Path:
    """SavedModels: `pair` (two numeric inputs; versions 1, 2), `texts` (strings, bytes), `types`, `examples`."""
    import tensorflow as tf

    class Pair(tf.Module):
        def __init__(self, factor):
            self.factor = tf.Variable(factor)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "a"), tf.TensorSpec([None], tf.int32, "b")])
        def scaled_sum(self, a, b):
            return {"total": (a + tf.cast(b, tf.float32)) * self.factor, "b": b}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def half(self, x):
            return {"y": x * 0.5 + 2.0}

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
        def matrix(self, x):
            return {"y": tf.matmul(x, tf.ones([2, 3])), "size": tf.size(x)}

        @tf.function(input_signature=[tf.TensorSpec([], tf.int32, "steps")])
        def slow(self, steps):
            return {"steps": tf.while_loop(lambda i: i < steps, lambda i: i + 1, [0], parallel_iterations=1)[0]}

    class Texts(tf.Module):
        def __init__(self, vocabulary):
            super().__init__()
            self.vocabulary = tf.saved_model.Asset(vocabulary)
            initializer = tf.lookup.TextFileInitializer(
                self.vocabulary,
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            )
            self.table = tf.lookup.StaticHashTable(initializer, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def index(self, text):
            return {"index": self.table.lookup(text), "same": text, "same_bytes": text}

    class Types(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "image")])
        def pixels(self, image):
            return {"mean": tf.reduce_mean(tf.cast(image, tf.float32), [1, 2, 3]), "first": image[:, 0, 0]}

        @tf.function(
            input_signature=[
                tf.TensorSpec(None, t, n)
                for n, t in [("f64", tf.float64), ("i64", tf.int64), ("flag", tf.bool), ("u64", tf.uint64)]
            ]
        )
        def echo(self, f64, i64, flag, u64):
            return {"f64": f64 + 0, "i64": i64 + 0, "flag": tf.logical_not(flag), "u64": tf.identity(u64)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float16, "x")])
        def halves(self, x):
            return {"x": x * 2}

    folder = tmp_path_factory.mktemp("saved_models")
    for version, factor in [(1, 1.0), (2, 10.0)]:
        pair = Pair(factor)
        tf.saved_model.save(
            pair,
            str(folder / "pair" / str(version)),
            {"serving_default": pair.scaled_sum, "half": pair.half, "matrix": pair.matrix, "slow": pair.slow},
        )
    words = folder / "words.txt"
    words.write_text("good\nbad\n")
    texts = Texts(str(words))
    tf.saved_model.save(texts, str(folder / "texts" / "7"), {"serving_default": texts.index})
    types = Types()
    tf.saved_model.save(
        types,
        str(folder / "types" / "00000003"),
        {"pixels": types.pixels, "serving_default": types.echo, "halves": types.halves},
    )
    example_models.save(folder / "examples" / "1")
    return folder


@pytest.fixture(scope="session")
def server(saved_models, tmp_path_factory):
    """Serves `saved_models` by --serving_root, with another folder name than any model's as a trap."""
    (saved_models / "not_a_model").mkdir()
    running = start_server(
        tmp_path_factory.mktemp("server"),
        saved_models,
        f"--serving_root={saved_models}",
        "--file_system_poll_wait_seconds=0.1",
        "--max_num_load_retries=0",
        "--enable_grpc_healthcheck_service",
        "--no_such_flag=1",
    )
    try:
        running.wait_for("Serving .*", START_SECONDS)
        yield running
    finally:
        stop_server(running)


@pytest.fixture(scope="session")
def rest(saved_models):
    """The models' REST application in this process."""
    application = Rest(saved_models / name for name in ("pair", "texts", "types", "examples"))
    yield application
    application.close()


@pytest.fixture
def processes(tmp_path, saved_models):
    """Starts servers of one test, and kills those that still run at its end."""
    started = []

    def start(*flags: str) -> Server:
        started.append(start_server(tmp_path, saved_models, *flags))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()
