"""The whole flow on a tiny slice of each task: source, records, run, export, gate, push, server, client."""

import dataclasses
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import manifest, runs
from pipeline.config import Config, Gate, Optimizer, Push
from pipeline.errors import REFUSED, Refused
from pipeline.release.audit import audit
from pipeline.run import run
from pipeline.sources.source import Shard
from serving.client import Client, ServingError
from tests import tiny

PLANTED = "planted-4711"
"""In the settings of every run, and in its environment: to be found in nothing that it writes."""


@dataclasses.dataclass(frozen=True)
class Literal:
    """A source out of tiny's rows, with one bad row."""

    task: str
    classes: tuple[str, ...] = ()

    def shards(self) -> list[Shard]:
        return [Shard(split, "test" if split == "test" else "train") for split in tiny.SIZES]

    def read(self, shard: Shard):
        yield from tiny.rows(self.task, shard.name)
        if shard.name == "val":
            yield {"id": "bad-row"}

    def identity(self) -> dict:
        return {"literal": self.task}


def config_of(task: str, root: Path, **changes) -> Config:
    config = tiny.config(task, root, epochs=3)
    gate = Gate(at_most={"rmse": 0.9}, tolerance={"rmse": 0.05}, min_examples=20)
    if task != "recommendation":
        gate = Gate(at_least={"accuracy": 0.9}, tolerance={"accuracy": 0.05}, min_examples=20)
    data = dataclasses.replace(config.data, max_bad_fraction=0.05, validation_fraction=0.25)
    key = root / "key"
    key.write_text(PLANTED)
    # a boot takes seconds: one of the three is enough
    push = Push(validate=task == "sentiment", key_file=key)
    return tiny.planted(dataclasses.replace(config, gate=gate, data=data, push=push, **changes), PLANTED)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("end to end")


@pytest.fixture(scope="module")
def pushed(root) -> dict[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_TOKEN", PLANTED)
        return {task: run(config_of(task, root), "tiny", Literal(task)) for task in tiny.TASKS}


def test_each_task_ends_as_version_1_under_the_serving_root(pushed, root):
    for task, version in pushed.items():
        assert version == root / "exports" / task / "1"
        assert manifest.verify(version)["task"] == task
        run_dir = runs.existing_run(config_of(task, root))
        assert (run_dir / "report.html").stat().st_size > 5000
        counts = next((root / "records" / task).glob("*/MANIFEST.json")).parent
        facts = manifest.verify(counts)["counts"]
        assert facts["in"] == facts["good"] + facts["dead"] == sum(tiny.SIZES.values()) + 1
        assert facts["dead"] == 1


def test_the_same_command_again_changes_nothing(pushed, root):
    before = {p: p.read_bytes() for p in (root / "exports").rglob("*") if p.is_file()}
    assert run(config_of("recommendation", root), "tiny", Literal("recommendation")) == pushed["recommendation"]
    assert before == {p: p.read_bytes() for p in (root / "exports").rglob("*") if p.is_file()}


def test_the_chain_from_each_live_version_to_its_data_is_whole(pushed, root):
    for task in tiny.TASKS:
        assert [link.text for link in audit(root / "exports" / task) if link.state != "ok"] == []


def test_no_secret_of_settings_key_or_environment_is_in_anything_that_was_written(pushed, root):
    written = [path for path in root.rglob("*") if path.is_file() and path != root / "key"]
    assert {"report.html", "config.json", "MANIFEST.json", "journal.jsonl"} <= {path.name for path in written}
    assert [path for path in written if PLANTED.encode() in path.read_bytes()] == []
    assert "manifest_hmac_sha256" in (pushed["image"] / "MANIFEST.json").read_text()


def test_the_server_was_booted_on_the_export_before_it_was_pushed(pushed, root):
    found = json.loads((runs.existing_run(config_of("sentiment", root)) / "validation.json").read_text())
    assert "serving_default" in found["signatures"]
    assert set(found["p99_ms"]) == {"rest", "grpc"}


def test_a_candidate_that_learned_nothing_is_refused_with_metric_old_and_new_and_nothing_is_pushed(pushed, root):
    bad = config_of("image", root, optimizer=Optimizer(name="sgd", learning_rate=1e-12))
    bad = dataclasses.replace(bad, run=dataclasses.replace(bad.run, name="bad"))
    with pytest.raises(Refused, match="accuracy") as raised:
        run(bad, "tiny", Literal("image"))
    assert raised.value.code == REFUSED
    assert "\n" not in str(raised.value)
    assert [p.name for p in (root / "exports" / "image").iterdir() if p.name.isdigit()] == ["1"]
    assert (runs.existing_run(bad) / "report.html").is_file()


@pytest.fixture(scope="module")
def server(pushed, root):
    ports = {}
    for protocol in ("rest", "grpc"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports[protocol] = free.getsockname()[1]
    words = [f"--serving_root={root / 'exports'}", f"--rest_api_port={ports['rest']}", f"--port={ports['grpc']}"]
    process = subprocess.Popen([sys.executable, "-m", "pipeline", "serve", *words], stderr=subprocess.DEVNULL)
    try:
        yield {protocol: f"127.0.0.1:{port}" for protocol, port in ports.items()}
    finally:
        process.terminate()
        process.wait(30)


def client_of(server: dict[str, str], protocol: str) -> Client:
    client, deadline = Client(server[protocol], protocol), time.monotonic() + 120
    while True:
        try:
            if all(v.state == "AVAILABLE" for task in tiny.TASKS for v in client.status(task)):
                return client
        except ServingError:
            pass
        assert time.monotonic() < deadline, "the server did not load the models"
        time.sleep(0.2)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_client_gets_what_the_export_answers_in_this_process(protocol, server, pushed):
    rows = {task: tiny.rows(task, "test")[:3] for task in tiny.TASKS}
    asked = {
        "image": ("serving_default", {"image_bytes": [r["image_bytes"] for r in rows["image"]]}),
        "sentiment": ("serving_default", {"text": [r["text"].encode() for r in rows["sentiment"]]}),
        "recommendation": ("recommend", {"user_id": [r["user_id"].encode() for r in rows["recommendation"]]}),
    }
    with client_of(server, protocol) as client:
        for task, (signature, inputs) in asked.items():
            answer = client.predict(task, {k: np.array(v, object) for k, v in inputs.items()}, signature)
            loaded = tf.saved_model.load(str(pushed[task]))
            expected = loaded.signatures[signature](**{k: tf.constant(v) for k, v in inputs.items()})
            assert set(answer) == set(expected)
            for name, value in expected.items():
                if value.dtype == tf.string:
                    assert answer[name].tolist() == value.numpy().tolist()
                else:
                    np.testing.assert_allclose(answer[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_request_with_a_wrong_field_is_refused_by_its_name(protocol, server):
    with client_of(server, protocol) as client, pytest.raises(ServingError, match="text"):
        client.predict("sentiment", {"txt": np.array([b"good"], object)})
