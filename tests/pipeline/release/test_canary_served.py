"""A real server, a canary and a stream of requests: a bad canary goes by itself, a good one stays, and no request that
names no version is lost for a move of the pointer."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import manifest
from pipeline.release import live, rollout
from pipeline.release.live import Live
from serving.client import Client, ServingError, Tls
from tests.serving.certificates import write_certificate

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "serving" / "tfserving" / "monitoring.config"


class Doubled(tf.Module):
    """x * factor + shift, and which third of 0 to 1 x is in, or `always` says; a request whose first x lies under
    `fails` is an error."""

    def __init__(self, factor: float = 2.0, shift: float = 0.0, fails: float = 0.0, always: int | None = None):
        self.factor, self.shift, self.fails, self.always = tf.Variable(factor), shift, fails, always

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def serve(self, x):
        with tf.control_dependencies([tf.debugging.assert_greater_equal(x[:1], self.fails, "poisoned")]):
            third = tf.cast(3 * x, tf.int32) if self.always is None else tf.fill(tf.shape(x), self.always)
            return {"y": self.factor * x + self.shift, "scores": tf.nn.softmax(5 * tf.one_hot(third, 3))}


VERSIONS = {1: Doubled(), 2: Doubled(fails=0.2), 3: Doubled(shift=1.0), 4: Doubled(), 5: Doubled(always=1)}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The model's folder; version 1 is stable."""
    root = tmp_path_factory.mktemp("served") / "exports" / "doubled"
    for number, module in VERSIONS.items():
        with manifest.committing(root / str(number)) as draft:
            tf.saved_model.save(module, str(draft.path), signatures={"serving_default": module.serve})
    with live.locked(root):
        live.commit(root, "push", None, Live(1), "first")
    return root


@contextmanager
def serving(root: Path, *flags: str, **client) -> Iterator[str]:
    """The REST address of a server that follows the model's LIVE.json."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [f"--serving_root={root.parent}", f"--rest_api_port={port}", "--port=0"]
    words += ["--file_system_poll_wait_seconds=0.2", f"--monitoring_config_file={MONITORING}", *flags]
    process = subprocess.Popen([sys.executable, "-m", "serving.server", *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    address = f"127.0.0.1:{port}"
    try:
        settled(address, {1}, **client)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def served(root):
    with serving(root) as address:
        yield root, address


def settled(address: str, versions: set[int], **options) -> None:
    """Returns when the server offers all of these versions."""
    deadline = time.monotonic() + 120
    with Client(address, timeout=10, **options) as client:
        while True:
            try:
                if versions <= {v.version for v in client.status("doubled") if v.state == "AVAILABLE"}:
                    return
            except ServingError:
                pass
            assert time.monotonic() < deadline, f"the server does not offer {versions}"
            time.sleep(0.1)


class Stream:
    """Requests that name no version, one after another, until it is left; counts those that failed."""

    def __init__(self, address: str, **options):
        self.address, self.options, self.sent, self.failed, self.stop = address, options, 0, 0, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        random = np.random.default_rng(0)
        with Client(self.address, timeout=10, **self.options) as client:
            while not self.stop.is_set() and self.sent < 30_000:
                self.sent += 1
                try:
                    client.predict("doubled", {"x": random.random(4, np.float32)})
                except ServingError:
                    self.failed += 1
                time.sleep(0.004)  # what a canary may answer between two readings of the page is counted in requests

    def __enter__(self) -> "Stream":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        self.thread.join()


def canary(root: Path, address: str, version: int, *more: str) -> subprocess.CompletedProcess:
    words = ["canary", root.name, "--root", str(root.parent), "--version", str(version), "--percent", "20", "--judge"]
    command = [sys.executable, "-m", "pipeline", *words, "--address", address, "--max-seconds", "90", *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, env={**os.environ})


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("version", "named"),
    [(2, "failed, at the stable version 0 of"), (3, "y moved by"), (5, "serving_default/scores[1] moved by")],
)
def test_a_canary_that_fails_or_answers_something_else_is_rolled_back_by_itself(served, version, named):
    root, address = served
    rollout.rollback(root, 1)
    with Stream(address) as stream:
        done = canary(root, address, version)
    assert done.returncode == 3, done.stderr
    assert f"the canary {version} was rolled back: judged after" in done.stderr
    assert live.read(root) == Live(1)
    last = live.events(root)[-1]
    assert (last.event, last.undone) == ("rollback", {version})
    assert named in last.why
    asked = int(last.why.split()[2])
    assert asked <= 150, last.why
    assert stream.failed <= asked


@pytest.mark.chaos
def test_a_judge_reads_the_admin_port_of_a_hardened_server_over_tls_with_its_token(root, tmp_path):
    rollout.rollback(root, 1)
    certificate, key = write_certificate(tmp_path)
    (tmp_path / "token").write_text("t0ken\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        admin = free.getsockname()[1]
    flags = [f"--tls_certificate={certificate}", f"--tls_key={key}", f"--token_file={tmp_path / 'token'}"]
    options = {"token": "t0ken", "tls": Tls(certificate)}
    access = ["--token_file", str(tmp_path / "token"), "--tls_ca", str(certificate)]
    with (
        serving(root, "--profile=hardened", f"--admin_port={admin}", *flags, **options) as address,
        Stream(address, **options),
    ):
        done = canary(root, f"127.0.0.1:{admin}", 5, *access)
        words = ["status", root.name, "--root", str(root.parent), "--address", address, *access]
        told = subprocess.run([sys.executable, "-m", "pipeline", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "scores[1] moved by" in live.events(root)[-1].why
    assert "AVAILABLE" in told.stdout, told.stderr


@pytest.mark.chaos
def test_a_canary_that_is_as_good_is_promoted_and_a_rollback_loses_no_request(served):
    root, address = served
    rollout.rollback(root, 1)
    with Stream(address) as stream:
        done = canary(root, address, 4)
        assert done.returncode == 0, done.stderr
        assert live.read(root) == Live(4, 1)
        settled(address, {1, 4})
        rollout.rollback(root)
        time.sleep(1)
    assert live.read(root) == Live(1)
    assert (stream.failed, stream.sent > 500) == (0, True)


@pytest.mark.chaos
def test_the_server_follows_the_pointer_within_its_poll(served):
    root, address = served
    rollout.rollback(root, 1)
    rollout.canary(root, 3, 100)
    settled(address, {1, 3})
    with Client(address, timeout=10) as client:

        def answer() -> float:
            return float(client.predict("doubled", {"x": np.zeros(1, np.float32)})["y"][0])

        awaited(lambda: answer() == 1.0)
        rollout.rollback(root)
        awaited(lambda: answer() == 0.0)


def awaited(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_file_that_is_written_is_the_one_that_the_server_reads(tmp_path):
    code = "import json, sys; from pathlib import Path; from serving.server.live import read\n"
    code += "print(json.dumps(read(Path(sys.argv[1]))))"
    for number in (1, 2, 3):
        with manifest.committing(tmp_path / str(number)):
            pass
    with live.locked(tmp_path):
        live.commit(tmp_path, "push", None, Live(2, 1), "")
    rollout.canary(tmp_path, 3, 0.25)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout) == [2, 1, 3, 0.25], done.stderr
