"""A server is booted on the export and asked over both protocols; what differs from the answers at export is told."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import manifest
from pipeline.config import Config, Push
from pipeline.errors import MISSING, REFUSED, Refused, UserError
from pipeline.release import validate as module
from pipeline.release.export import export
from pipeline.release.validate import NAME, Question, compare, questions, validate
from pipeline.training.loop import train
from serving.client import ServingError
from tests import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Config, Path]:
    """A trained tiny model of the task with two signatures of strings, and its run, exported."""
    root = tmp_path_factory.mktemp("validated")
    config, records_dir = tiny.config("recommendation", root, epochs=1), tiny.records_dir("recommendation", root)
    run_dir = train(config, records_dir)
    export(run_dir, records_dir, config)
    return config, run_dir


def bounded(config: Config, **bounds) -> Config:
    return dataclasses.replace(config, push=Push(**bounds))


@pytest.fixture(scope="module")
def validated(made) -> dict:
    config, run_dir = made
    return validate(run_dir, config)


def test_every_signature_is_asked_over_both_protocols_and_measured(made, validated):
    assert validated["signatures"] == sorted({q.signature for q in questions(made[1] / "export")})
    assert {"serving_default", "recommend"} <= set(validated["signatures"])
    for protocol in ("rest", "grpc"):
        assert 0 < validated["p50_ms"][protocol] <= validated["p99_ms"][protocol]
    assert 50 < validated["memory_mb"] < 10_000
    assert json.loads((made[1] / NAME).read_text()) == validated


def test_no_server_is_left_behind(validated):
    children = map(words_of_child, Path("/proc").glob("[0-9]*"))
    assert [words for words in children if "--model_name=recommendation" in words] == []


def words_of_child(process: Path) -> list[str]:
    """Its command line, if it is a child of this process; it may end meanwhile."""
    with contextlib.suppress(OSError):
        parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
        return (process / "cmdline").read_text().split("\0") if int(parent) == os.getpid() else []
    return []


@pytest.fixture
def no_server(monkeypatch):
    def booted(*_):
        raise AssertionError("booted again")

    monkeypatch.setattr(module, "booted", booted)


def test_an_export_that_was_validated_is_not_booted_again(made, validated, no_server):
    assert validate(made[1], made[0]) == validated


@pytest.mark.parametrize("bounds", [{"max_p99_ms": 1e-6}, {"max_memory_mb": 1.0}])
def test_a_tighter_bound_than_what_was_measured_is_looked_at_again(made, validated, no_server, bounds):
    with pytest.raises(AssertionError, match="booted again"):
        validate(made[1], bounded(made[0], **bounds))


@pytest.fixture
def answered(made, monkeypatch):
    """The real questions, to a server that answers by `change(protocol, answers)`."""

    class Process:
        pid = "self"

    class Answering:
        def __init__(self, address, protocol):
            self.protocol = protocol

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def predict(self, model, inputs, signature_name):
            for question in questions(made[1] / "export"):
                same = question.inputs.keys() == inputs.keys() and question.rows == len(next(iter(inputs.values())))
                if question.signature == signature_name and same:
                    answers = {name: value.copy() for name, value in question.answers.items()}
                    return Answering.change(self.protocol, signature_name, answers)
            raise AssertionError("no such question")

    @contextlib.contextmanager
    def booted(*_):
        yield Process(), dict.fromkeys(("rest", "grpc"))

    def run(change, **bounds):
        Answering.change = staticmethod(change)
        monkeypatch.setattr(module, "Client", Answering)
        monkeypatch.setattr(module, "SECONDS", 0.01)
        monkeypatch.setattr(module, "booted", booted)
        return validate(made[1], bounded(made[0], **bounds), again=True)

    return run


def nudged(protocol, signature, answers):
    if (protocol, signature) == ("grpc", "serving_default"):
        answers["rating"][0] += 0.01
    return answers


def renamed(protocol, signature, answers):
    return {f"{name}_0": value for name, value in answers.items()}


def cast(protocol, signature, answers):
    return {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in answers.items()}


def cut(protocol, signature, answers):
    return {name: value[:-1] for name, value in answers.items()}


def other_items(protocol, signature, answers):
    if "item_ids" in answers:
        answers["item_ids"][0, 0] = b"nothing"
    return answers


def failing(protocol, signature, answers):
    raise ServingError("no kernel for this op")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (nudged, r"served over GRPC, signature serving_default, output rating: row 0 is .* instead of .* \(1 values"),
        (renamed, r"served over REST, signature \w+ answers .*_0 instead of"),
        (cast, r"output \w+: float64 instead of float32"),
        (cut, r"output \w+: shape \(0.*\) instead of \(1"),
        (other_items, r"signature recommend, output item_ids: row 0 is b'nothing' instead of b'i"),
        (failing, r"signature \w+ fails \(ServingError: no kernel for this op\)"),
    ],
)
def test_the_field_that_differs_is_named_with_its_protocol_and_signature(answered, change, named):
    with pytest.raises(Refused, match=named) as raised:
        answered(change)
    assert raised.value.code == REFUSED


def test_rounding_is_no_difference(answered):
    def rounded(protocol, signature, answers):
        return {k: v * np.float32(1 + 1e-6) if v.dtype == np.float32 else v for k, v in answers.items()}

    assert answered(rounded)["signatures"]


@pytest.mark.parametrize(
    ("bounds", "named"),
    [({"max_p99_ms": 1e-6}, r"p99_ms over \w+ is .*, above --push.max-p99-ms 1e-06"),
     ({"max_memory_mb": 1.0}, "memory_mb is .*, above --push.max-memory-mb 1")],
)  # fmt: skip
def test_a_bound_that_is_exceeded_is_named(answered, bounds, named):
    with pytest.raises(Refused, match=named):
        answered(lambda protocol, signature, answers: answers, **bounds)


def test_memory_that_the_system_does_not_tell_is_not_measured_and_a_bound_of_it_is_refused():
    assert module._memory(2**30) is None
    found = {"p99_ms": {"rest": 1.0}, "memory_mb": None}
    assert module._too_much(found, Push()) == ""
    assert "memory_mb cannot be measured" in module._too_much(found, Push(max_memory_mb=1e9))


def test_not_a_number_equals_itself_and_nothing_else():
    class Same:
        def predict(self, *_):
            return {"y": np.array([np.nan, 1.0], np.float32)}

    def asked(*values):
        return compare(Same(), "m", Question("s", {"x": np.zeros(2)}, {"y": np.array(values, np.float32)}))

    assert asked(np.nan, 1.0) == ""
    assert "row 0 is nan" in asked(0.0, 1.0)


def test_a_server_that_ends_early_is_told_by_its_last_line(tmp_path):
    (tmp_path / "log").write_text("chatter\nno model became available: broken\n")
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(65)"]) as server:
        server.wait()
        with pytest.raises(Refused, match="ended early: no model became available: broken"):
            module._await(server, "127.0.0.1:9", "m", Path("export"), tmp_path / "log")


def test_without_an_export_or_a_question_there_is_nothing_to_validate(tmp_path, made):
    with pytest.raises(UserError, match="has no export yet") as raised:
        validate(tmp_path, made[0])
    assert raised.value.code == MISSING
    with manifest.committing(tmp_path / "export") as draft:
        (draft.path / "saved_model.pb").write_text("x")
    with pytest.raises(Refused, match="export it again"):
        questions(tmp_path / "export")


def test_an_older_export_without_answers_is_compared_with_its_signatures_in_this_process(made, tmp_path):
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    shutil.copytree(made[1] / "export", tmp_path / "export")
    path = tmp_path / "export" / module.WARMUP
    logs = [prediction_log_pb2.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for log in logs:
            log.predict_log.ClearField("response")
            writer.write(log.SerializeToString())
    facts = manifest.read(tmp_path / "export")
    (tmp_path / "export" / manifest.NAME).unlink()
    with manifest.committing(tmp_path / "old") as draft:
        shutil.copytree(tmp_path / "export", draft.path, dirs_exist_ok=True)
        draft.facts.update({k: v for k, v in facts.items() if k != "files"})
    for old, new in zip(questions(tmp_path / "old"), questions(made[1] / "export"), strict=True):
        assert old.answers.keys() == new.answers.keys()
        for name, value in new.answers.items():
            assert module._difference(old.answers[name], value) == ""
