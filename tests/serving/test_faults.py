"""Pushes, broken pushes, stops and many reloads under load: no request fails, and nothing grows."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import tensorflow as tf

from serving.client import Client
from serving.errors import ServingError, Unavailable
from serving.settings import Retries
from tests.serving.test_versions import add_warmup, warmup_record

pytestmark = pytest.mark.chaos

START = 200  # seconds for TensorFlow's import on a busy machine
CLIENTS = 4


class Load:
    """`CLIENTS` threads that ask for 1 + 2; `answers` are (sent, came, total), `errors` what was raised."""

    def __init__(self, server, method="grpc"):
        self.answers, self.errors, self._stopping = [], [], threading.Event()
        address = server.rpc if method == "grpc" else server.rest
        self._threads = [threading.Thread(target=self._ask, args=(address, method)) for _ in range(CLIENTS)]

    def _ask(self, address, method):
        with Client(address, method, timeout=30, retries=Retries(attempts=1)) as client:
            while not self._stopping.is_set():
                sent = time.monotonic()
                try:
                    total = client.predict("m", {"a": [1.0], "b": [2]})["total"][0]
                    self.answers.append((sent, time.monotonic(), float(total)))
                except ServingError as error:
                    self.errors.append((sent, error))
                    return

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def model(tmp_path, saved_models):
    """A serving root with the model `m`; `push(source, version)` renames a copy of `pair`'s version in."""

    class Model:
        root = tmp_path / "root"
        folder = root / "m"

        def push(self, source, version, harm=lambda draft: None):
            draft = self.folder / f".tmp-{version}"
            shutil.copytree(saved_models / "pair" / str(source), draft)
            harm(draft)
            draft.rename(self.folder / str(version))

        def go_live(self, **state):
            draft = self.folder / ".tmp-live"
            draft.write_text(json.dumps({"format": 1, "previous": None, "canary": None, "percent": 0} | state))
            draft.rename(self.folder / "LIVE.json")

    Model.folder.mkdir(parents=True)
    return Model()


@pytest.mark.parametrize("method", ["grpc", "rest"])
def test_a_push_and_a_rollback_under_load_fail_no_request_and_the_rollback_takes_less_than_a_second(
    model, processes, method
):
    model.push(1, 1)
    model.go_live(stable=1)
    server = processes(f"--serving_root={model.root}")
    server.wait_for("Serving .*", START)
    with Load(server, method) as load:
        time.sleep(3)
        model.push(2, 2)
        model.go_live(stable=2, previous=1)
        server.wait_for("m/2 loaded")
        time.sleep(3)
        back = time.monotonic()
        model.go_live(stable=1, previous=2)
        time.sleep(3)
    assert load.errors == []
    assert {total for _, _, total in load.answers} == {3.0, 30.0}
    late = [sent - back for sent, _, total in load.answers if total == 30.0 and sent > back]
    assert max(late, default=0) < 1
    assert "unloaded" not in server.log.read_text()
    assert len(load.answers) > 1000


def ask_for_too_much(draft):
    """Its warm-up asks for a tensor of 2^46 numbers."""

    class Greedy(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "a"), tf.TensorSpec([None], tf.int32, "b")])
        def total(self, a, b):
            much = tf.fill([tf.cast(b[0], tf.int64) * 2**45], a[0])
            return {"total": a + much[-1:], "b": b}

    greedy = Greedy()
    shutil.rmtree(draft)
    tf.saved_model.save(greedy, str(draft), {"serving_default": greedy.total})
    add_warmup(draft, warmup_record(a=[1.0], b=[2]))


def test_broken_pushes_leave_the_old_version_answering_and_are_not_tried_for_ever(model, processes):
    model.push(1, 1)
    server = processes(
        f"--serving_root={model.root}", "--max_num_load_retries=1", "--load_retry_interval_micros=100000"
    )
    server.wait_for("Serving .*", START)
    with Load(server) as load:
        model.push(2, 2, lambda draft: (draft / "saved_model.pb").write_bytes(b"\xff" * 100))
        server.wait_for("m/2 not loaded.*attempt 2 of 2")
        model.push(2, 3, ask_for_too_much)
        server.wait_for("m/3 not loaded.*attempt 2 of 2")
        time.sleep(2)
    assert load.errors == []
    assert {total for _, _, total in load.answers} == {3.0}
    status = server.call("GET", "/v1/models/m").json()["model_version_status"]
    assert [(v["version"], v["state"]) for v in status] == [("3", "END"), ("2", "END"), ("1", "AVAILABLE")]
    assert all(v["status"]["error_message"] for v in status[:2])
    assert server.log.read_text().count("not loaded") == 4


def test_sigterm_under_load_answers_what_it_took_and_the_restart_serves_the_same_version(model, processes):
    model.push(1, 1)
    model.push(2, 2)
    model.go_live(stable=1)
    server = processes(f"--serving_root={model.root}")
    server.wait_for("Serving .*", START)
    with Load(server, "rest") as rest, Load(server, "grpc") as rpc:
        time.sleep(2)
        told = time.monotonic()
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0
    for load in (rest, rpc):
        assert {total for _, _, total in load.answers} == {3.0}
        assert all(isinstance(error, Unavailable) for _, error in load.errors), load.errors
        assert all(sent > told - 1 for sent, _ in load.errors)
        assert len(load.errors) == CLIENTS

    server = processes(f"--serving_root={model.root}")
    server.wait_for("Serving .*", START)
    with Load(server):
        time.sleep(1)
    server.process.kill()
    server.process.wait()
    server = processes(f"--serving_root={model.root}")
    server.wait_for("Serving .*: m/1", START)
    with Client(server.rpc, "grpc") as client:
        assert client.predict("m", {"a": [1.0], "b": [2]})["total"] == [3.0]


def held(process) -> tuple[float, int, int]:
    """Resident megabytes, threads and file descriptors of a process."""
    proc = Path("/proc", str(process.pid))
    lines = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["Threads"]), len(os.listdir(proc / "fd"))


def test_twenty_reloads_leave_memory_threads_and_descriptors_where_they_were(tmp_path, processes):
    class Heavy(tf.Module):
        """20 MB."""

        def __init__(self):
            super().__init__()
            self.weights = tf.Variable(tf.ones([5 * 2**20]))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def total(self, x):
            return {"y": x * tf.reduce_mean(self.weights)}

    heavy = Heavy()
    folder = tmp_path / "root" / "m"
    tf.saved_model.save(heavy, str(folder / "1"), {"serving_default": heavy.total})
    server = processes(f"--serving_root={tmp_path / 'root'}", "--file_system_poll_wait_seconds=0.1")
    server.wait_for("Serving .*", START)
    seen = []
    with Client(server.rpc, "grpc") as client:
        for version in range(1, 26):
            assert client.predict("m", {"x": [version]})["y"] == [version]
            draft = folder / ".tmp"
            shutil.copytree(folder / str(version), draft)
            draft.rename(folder / str(version + 1))
            server.wait_for(f"m/{version} unloaded")
            shutil.rmtree(folder / str(version))
            seen.append(held(server.process))
    memory, threads, files = zip(*seen[5:], strict=True)
    assert len(memory) == 20
    assert max(memory) - memory[0] < min(20, 0.1 * memory[0]), memory  # less than one version
    assert max(threads) <= max(t for _, t, _ in seen[:5]), seen
    assert max(files) <= max(f for _, _, f in seen[:5]), seen


def test_a_stop_while_the_start_waits_ends_the_server(tmp_path, processes):
    server = processes(f"--model_base_path={tmp_path / 'none'}")
    server.wait_for("Could not find base path", START)
    server.process.terminate()
    assert server.process.wait(timeout=30) == 0
