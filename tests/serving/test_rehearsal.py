"""A SavedModel that brings TensorFlow down ends a child process, and the server goes on."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from serving.client import Client
from serving.server import load, rehearsal
from serving.server.batching_parameters import BatchingParameters
from serving.server.errors import Code, RequestError
from serving.server.flags import parse
from serving.server.rehearsal import rehearse


class Added(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def serve(self, x):
        return {"y": self.inner(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def inner(self, x):
        return x + 1


def save(path: Path, endless: bool = False) -> Path:
    """`endless`: `inner` calls itself, which TensorFlow follows until the stack ends."""
    module = Added()
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
    if endless:
        model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        functions = model.meta_graphs[0].graph_def.library.function
        inner = next(function for function in functions if "inner" in function.signature.name)
        (add,) = (node for node in inner.node_def if node.op == "AddV2")
        add.op = "StatefulPartitionedCall"
        add.input[:] = ["x"]
        add.attr.clear()
        add.attr["Tin"].list.type.append(1)
        add.attr["Tout"].list.type.append(1)
        add.attr["f"].func.name = inner.signature.name
        for node in inner.node_def:
            node.input[:] = [name.replace(f"{add.name}:z:0", f"{add.name}:output:0") for name in node.input]
        (path / "saved_model.pb").write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("words", "rehearsed"),
    [
        (["--load_in_child"], [1]),
        (["--load_in_child", "--num_request_iterations_for_warmup=3"], [3]),
        (["--load_in_child", "--enable_model_warmup=false"], [0]),
        ([], []),
    ],
)
def test_the_loader_rehearses_when_it_is_asked_to_and_before_it_loads(monkeypatch, tmp_path, words, rehearsed):
    calls = []

    def stop(*_):
        raise RequestError(Code.INTERNAL, f"loaded after {calls}")

    monkeypatch.setattr(load, "rehearse", lambda version, session, tags, iterations: calls.append(iterations))
    monkeypatch.setattr(load, "Servable", stop)
    flags, _ = parse([f"--serving_root={tmp_path}", *words])
    with pytest.raises(RequestError, match=re.escape(f"loaded after {rehearsed}")):
        load.Loader(flags, BatchingParameters())(tmp_path)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "SIGABRT (without a word)"),
        ("import sys; sys.exit('no interpreter')", "exit code 1 (no interpreter)"),
    ],
)
def test_a_child_that_ends_otherwise_than_well_is_told_with_how(monkeypatch, tmp_path, code, said):
    run = subprocess.run
    monkeypatch.setattr(
        rehearsal.subprocess, "run", lambda words, **options: run([words[0], "-c", code, *words[3:]], **options)
    )
    with pytest.raises(RequestError) as raised:
        rehearse(tmp_path, b"", ["serve"], 1)
    assert raised.value.code is Code.INTERNAL
    assert said in str(raised.value)


@pytest.mark.chaos
def test_what_loads_and_what_python_can_refuse_passes_a_rehearsal_and_a_crash_does_not(tmp_path):
    rehearse(save(tmp_path / "1"), b"", ["serve"], 1)
    rehearse(tmp_path / "none", b"", ["serve"], 1)
    with pytest.raises(RequestError, match=signal.Signals.SIGSEGV.name):
        rehearse(save(tmp_path / "2", endless=True), b"", ["serve"], 1)


@pytest.mark.chaos
@pytest.mark.parametrize("words", [[], ["--load_in_child"]], ids=["without", "in a child"])
def test_a_version_that_crashes_tensorflow_ends_the_server_unless_it_is_loaded_in_a_child(processes, tmp_path, words):
    save(tmp_path / "added" / "1")
    server = processes(f"--serving_root={tmp_path}", "--max_num_load_retries=0", *words)
    server.wait_for("Serving .*", 200)
    save(tmp_path / "draft", endless=True).rename(tmp_path / "added" / "2")
    if not words:
        assert server.process.wait(timeout=60) == -signal.SIGSEGV
        return
    server.wait_for("added/2 not loaded: .*SIGSEGV.*added/1 goes on.*", 60)
    with Client(server.rest, timeout=10) as client:
        assert client.predict("added", {"x": [1.0]})["y"].tolist() == [2.0]
