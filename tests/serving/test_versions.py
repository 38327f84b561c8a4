"""New, broken and vanishing versions under a running server."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

BODY = '{"inputs": {"a": [1], "b": [2]}}'


@dataclass
class Model:
    """A model folder of one test, in the serving root; versions are copies of `pair`'s 1 (x1) and 2 (x10)."""

    name: str
    folder: Path
    pair: Path

    def push(self, source: int, version: int, harm: Callable[[Path], object] = lambda draft: None) -> Path:
        """Renames a finished draft to its version, as an exporter does; `harm` strikes after the manifest."""
        draft = self.folder / f".tmp-{version}"
        shutil.copytree(self.pair / str(source), draft)
        files = {str(p.relative_to(draft)): describe(p) for p in draft.rglob("*") if p.is_file()}
        (draft / "MANIFEST.json").write_text(json.dumps({"files": files}))
        harm(draft)
        return draft.rename(self.folder / str(version))


def describe(path: Path) -> dict:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.fixture
def model(server, saved_models):
    name = f"pushed_{uuid.uuid4().hex[:8]}"
    folder = saved_models / name
    folder.mkdir()
    yield Model(name, folder, saved_models / "pair")
    shutil.rmtree(folder)


def total(server, name: str) -> float | str:
    answer = server.predict(name, BODY).json()
    return answer["outputs"]["total"][0] if "outputs" in answer else answer["error"]


def states(server, name: str) -> list[tuple[str, str]]:
    answer = server.call("GET", f"/v1/models/{name}").json()
    return [(v["version"], v["state"]) for v in answer["model_version_status"]]


def test_a_version_that_is_renamed_in_takes_over_and_then_the_old_one_is_unloaded(server, model):
    model.push(1, 1)
    server.wait_for(f"{model.name}/1 loaded")
    assert total(server, model.name) == 3.0
    model.push(2, 2)
    log = server.wait_for(f"(?s){model.name}/2 loaded.*{model.name}/1 unloaded")
    assert log
    assert total(server, model.name) == 30.0
    assert total(server, f"{model.name}/versions/1").endswith(f"Specific({model.name}, 1)")
    assert states(server, model.name) == [("2", "AVAILABLE"), ("1", "END")]


def test_removing_the_newest_version_brings_the_one_before_back(server, model):
    model.push(1, 1)
    newest = model.push(2, 2)
    server.wait_for(f"{model.name}/2 loaded")
    assert total(server, model.name) == 30.0
    shutil.rmtree(newest)
    server.wait_for(f"{model.name}/2 unloaded")
    assert total(server, model.name) == 3.0


def test_a_hidden_draft_is_not_a_version(server, model):
    model.push(1, 1)
    shutil.copytree(model.pair / "2", model.folder / ".tmp-2")
    shutil.copytree(model.pair / "2", model.folder / "2.tmp")
    model.push(1, 3)  # by the time that it is loaded, the drafts have been seen, too
    server.wait_for(f"{model.name}/3 loaded")
    assert {version for version, _ in states(server, model.name)} <= {"1", "3"}


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def add_warmup(draft: Path, *records: bytes) -> None:
    path = draft / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def warmup_record(**inputs) -> bytes:
    log = prediction_log_pb2.PredictionLog()
    for name, value in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log.SerializeToString()


def spoil_warmup(draft: Path) -> None:
    add_warmup(draft)
    (draft / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no TFRecord, but long enough for a header")


def cut_without_manifest(draft: Path) -> None:
    (draft / "MANIFEST.json").unlink()
    (draft / "saved_model.pb").write_bytes(b"\xff" * 100)


REFUSED = {
    "a_flipped_byte": (
        lambda draft: flip_a_byte(draft / "saved_model.pb"),
        "/2/saved_model.pb has changed since it was written",
    ),
    "a_missing_file": (
        lambda draft: (draft / "variables" / "variables.index").unlink(),
        "/2/variables/variables.index, which stands in MANIFEST.json: No such file",
    ),
    "a_cut_file": (
        lambda draft: os.truncate(draft / "saved_model.pb", 10),
        "/2/saved_model.pb has 10 bytes instead of",
    ),
    "a_broken_manifest": (
        lambda draft: (draft / "MANIFEST.json").write_text("{"),
        "/2/MANIFEST.json is not a readable manifest",
    ),
    "a_broken_model_without_manifest": (cut_without_manifest, "saved_model.pb"),
    "a_failing_warmup_request": (lambda draft: add_warmup(draft, warmup_record(a=[1.0])), "input size does not match"),
    "a_warmup_file_that_is_no_tfrecord": (spoil_warmup, "corrupted record"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_version_is_refused_and_the_older_one_goes_on(server, model, case):
    harm, reason = REFUSED[case]
    model.push(1, 1)
    server.wait_for(f"{model.name}/1 loaded")
    model.push(2, 2, harm)
    line = server.wait_for(f"{model.name}/2 not loaded: .*")
    assert reason in line
    assert line.endswith(f"({model.name}/1 goes on)")
    assert total(server, model.name) == 3.0
    assert states(server, model.name) == [("2", "END"), ("1", "AVAILABLE")]


def test_a_version_with_warmup_requests_is_loaded(server, model):
    model.push(1, 1, lambda draft: add_warmup(draft, warmup_record(a=[1.0], b=[2])))
    server.wait_for(f"{model.name}/1 loaded")


def test_a_model_whose_newest_version_is_broken_from_the_start_serves_the_one_before(server, model):
    draft = model.folder.parent / f".{model.name}"
    model.folder.rename(draft)
    Model(model.name, draft, model.pair).push(1, 1)
    Model(model.name, draft, model.pair).push(2, 2, lambda d: flip_a_byte(d / "saved_model.pb"))
    draft.rename(model.folder)
    server.wait_for(f"{model.name}/1 loaded")
    assert total(server, model.name) == 3.0
    assert states(server, model.name) == [("2", "END"), ("1", "AVAILABLE")]
