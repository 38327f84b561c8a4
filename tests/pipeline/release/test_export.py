"""Claims about the export: it answers as the model it was made from, in a process that has nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from models.analysis import load
from models.spec import spec_of
from pipeline import checkpoints, manifest, records
from pipeline.errors import UserError
from pipeline.release.export import export
from pipeline.training.loop import train
from tests import tiny

FRESH = """
import sys, numpy as np, tensorflow as tf
for directory, questions, answers in zip(*[iter(sys.argv[1:])] * 3):
    signatures, out = tf.saved_model.load(directory).signatures, {}
    for key, value in np.load(questions).items():
        name, field = key.split(".")
        out.setdefault(name, {})[field] = tf.constant(value.tolist() if value.dtype.kind == "S" else value)
    got = {f"{n}.{k}": v.numpy() for n, q in out.items() for k, v in signatures[n](**q).items()}
    np.savez(answers, **{k: v.astype("S") if v.dtype.kind == "O" else v for k, v in got.items()})
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, tuple]:
    """task -> (config, records, run, export) of a trained tiny model."""
    made = {}
    for task in tiny.TASKS:
        root = tmp_path_factory.mktemp(task)
        config, records_dir = tiny.config(task, root, epochs=1), tiny.records_dir(task, root)
        run_dir = train(config, records_dir)
        made[task] = (config, records_dir, run_dir, export(run_dir, records_dir, config))
    return made


def questions(task: str, records_dir: Path) -> dict[str, dict[str, np.ndarray]]:
    rows = {name: values[:20] for name, values in records.load(records_dir, "test", task).items()}
    if task == "image":
        decoded = np.stack([tf.io.decode_png(data, 3).numpy() for data in rows["image_bytes"]])
        return {"serving_default": {"image_bytes": rows["image_bytes"].astype("S")}, "pixels": {"image": decoded}}
    if task == "sentiment":  # of every length, and words that no training text had
        texts = [*rows["text"], b"never seen words", b"", "good Émile 😀 film".encode()]
        return {"serving_default": {"text": np.array(texts, "S")}}
    users, items = [*rows["user_id"], b"nobody"], [*rows["item_id"], b"nothing"]
    return {
        "serving_default": {"user_id": np.array(users, "S"), "item_id": np.array(items, "S")},
        "recommend": {"user_id": np.array(users, "S")},
    }


def test_a_fresh_process_answers_as_the_training_time_model_for_every_task_and_signature(exported, tmp_path):
    words = []
    for task, (_, records_dir, _, directory) in exported.items():
        asked = {f"{s}.{f}": v for s, fields in questions(task, records_dir).items() for f, v in fields.items()}
        np.savez(tmp_path / f"{task}-asked.npz", **asked)
        words += [str(directory), str(tmp_path / f"{task}-asked.npz"), str(tmp_path / f"{task}-answered.npz")]
    subprocess.run([sys.executable, "-c", FRESH, *words], check=True, capture_output=True)
    for task, (config, records_dir, run_dir, _) in exported.items():
        analysis = load(records_dir, task)
        model = checkpoints.best_model(run_dir, config, analysis)
        functions = spec_of(task).serve(model, config.model, analysis).functions
        answered = np.load(tmp_path / f"{task}-answered.npz")
        compared = 0
        for name, fields in questions(task, records_dir).items():
            inputs = {f: tf.constant(v.tolist() if v.dtype.kind == "S" else v) for f, v in fields.items()}
            for key, expected in functions[name](**inputs).items():
                there = answered[f"{name}.{key}"]
                if expected.dtype == tf.string:
                    assert there.astype("S").tolist() == expected.numpy().astype("S").tolist()
                else:
                    np.testing.assert_allclose(there, expected, rtol=1e-5, atol=1e-5)
                compared += 1
        assert compared == len(answered.files) >= 2


def test_each_variable_is_saved_once_so_that_a_loader_without_python_fills_it(exported):
    for task, (_, _, _, directory) in exported.items():
        with tf.compat.v1.Session(graph=tf.Graph()) as session:
            tf.compat.v1.saved_model.load(session, ["serve"], str(directory))
            handles = [o.name for o in session.graph.get_operations() if o.type == "VarHandleOp"]
            values = session.run(
                [
                    tf.raw_ops.ReadVariableOp(resource=o.outputs[0], dtype=o.get_attr("dtype"))
                    for o in session.graph.get_operations()
                    if o.type == "VarHandleOp"
                ]
            )
        assert len(values) == len(handles) >= (1 if task == "recommendation" else 2), task  # its tables are one


def test_every_warm_up_request_can_be_answered_and_every_signature_has_one(exported):
    from tensorflow_serving.apis import prediction_log_pb2

    for task, (_, _, _, directory) in exported.items():
        signatures = tf.saved_model.load(str(directory)).signatures
        warmed = set()
        for data in tf.data.TFRecordDataset(str(directory / "assets.extra" / "tf_serving_warmup_requests")):
            request = prediction_log_pb2.PredictionLog.FromString(data.numpy()).predict_log.request
            name = request.model_spec.signature_name
            inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
            assert signatures[name](**inputs)
            warmed.add((name, len(next(iter(inputs.values())))))
        assert warmed == {(name, size) for name in signatures for size in (1, 8)}, task


def test_an_export_carries_no_path_of_where_it_was_made(exported):
    for _, records_dir, _, directory in exported.values():
        graph = (directory / "saved_model.pb").read_bytes()
        assert str(records_dir).encode() not in graph


def test_an_export_that_is_there_is_kept_and_a_damaged_one_is_refused(exported):
    config, records_dir, run_dir, directory = exported["recommendation"]
    before = (directory / manifest.NAME).read_bytes()
    assert export(run_dir, records_dir, config) == directory
    assert (directory / manifest.NAME).read_bytes() == before
    graph = directory / "saved_model.pb"
    data = graph.read_bytes()
    graph.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"saved_model\.pb"):
        export(run_dir, records_dir, config)
    graph.write_bytes(data)


def test_an_unfinished_run_has_nothing_to_export(tmp_path):
    config, records_dir = tiny.config("image", tmp_path), tiny.records_dir("image", tmp_path)
    run_dir = tmp_path / "runs" / "tiny-image" / "0001"
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="unfinished"):
        export(run_dir, records_dir, config)
    assert not (run_dir / "export").exists()


def test_an_export_says_what_its_inputs_look_like_and_names_no_one(exported):
    inputs = {"image": {"image", "image_bytes"}, "sentiment": {"text"}, "recommendation": {"user_id", "item_id"}}
    for task, (_, _, _, directory) in exported.items():
        text = (directory / "assets.extra" / "statistics.json").read_text()
        features = json.loads(text)["features"]
        assert set(features) == inputs[task]
        for feature in features.values():
            for measure in feature["measures"].values():
                assert len(measure["shares"]) == len(measure["edges"]) + 1
                assert sum(measure["shares"]) == pytest.approx(1)
