"""The requests that a version runs before it is offered."""

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.server import metrics
from serving.server.errors import Code, RequestError
from serving.server.servable import Servable
from serving.server.warmup import PATH, warm_up


@pytest.fixture(scope="module")
def pair(saved_models):
    servable = Servable(saved_models / "pair" / "1")
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def examples(saved_models):
    servable = Servable(saved_models / "examples" / "1")
    yield servable
    servable.close()


def predict_log(**inputs):
    log = prediction_log_pb2.PredictionLog()
    for name, value in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log


def write(folder, *records):
    path = folder / PATH
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record if isinstance(record, bytes) else record.SerializeToString())


@pytest.fixture
def runs(pair, monkeypatch):
    """Counts what the servable runs."""
    counted, run = [], pair.run
    monkeypatch.setattr(pair, "run", lambda *call: counted.append(call) or run(*call))
    return counted


def refused(servable, folder):
    with pytest.raises(RequestError) as raised:
        warm_up(servable, folder)
    return raised.value.code, raised.value.message


GOOD = predict_log(a=[1.0], b=[2])


def test_without_a_file_nothing_runs(pair, tmp_path, runs):
    assert (warm_up(pair, tmp_path), runs) == (0, [])


def test_each_record_runs_as_often_as_asked(pair, tmp_path, runs):
    write(tmp_path, GOOD, GOOD)
    assert (warm_up(pair, tmp_path, 3), len(runs)) == (2, 6)
    assert f'model_warmup_records_read{{model_path="{tmp_path}",status="OK"}} 2' in metrics.text()


def test_a_record_without_a_request_is_passed_over(pair, tmp_path, runs):
    write(tmp_path, b"", GOOD)
    assert (warm_up(pair, tmp_path), len(runs)) == (2, 1)


def test_a_thousand_records_are_run_and_one_more_is_refused(pair, tmp_path):
    write(tmp_path, *[b""] * 1000)
    assert warm_up(pair, tmp_path) == 1000
    write(tmp_path, *[b""] * 1001)
    message = f"Number of warmup records exceeds the maximum (1000) at {tmp_path / PATH}"
    assert refused(pair, tmp_path) == (Code.INVALID_ARGUMENT, message)


def example_log(kind, signature):
    log = prediction_log_pb2.PredictionLog()
    request = getattr(log, kind).request
    if kind == "multi_inference_log":
        task = request.tasks.add(method_name="tensorflow/serving/regress")
        task.model_spec.name = "any"
        spec = task.model_spec
    else:
        spec = request.model_spec
    spec.signature_name = signature
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(1.5)
    return log


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("classify_log", "serving_default", "wide"),
        ("regress_log", "regress", "wide"),
        ("multi_inference_log", "regress", "wide"),
    ],
    ids=["classify", "regress", "multi_inference"],
)
def test_records_of_every_method_are_run_and_their_failure_is_one_of_the_load(examples, tmp_path, kind, good, bad):
    write(tmp_path, example_log(kind, good))
    assert warm_up(examples, tmp_path) == 1
    write(tmp_path, example_log(kind, bad))
    with pytest.raises(RequestError):
        warm_up(examples, tmp_path)


@pytest.mark.parametrize(("kind", "number"), [("session_run_log", 5), ("predict_streamed_log", 7)])
def test_kinds_that_tf_serving_does_not_replay_are_unimplemented(pair, tmp_path, kind, number):
    log = prediction_log_pb2.PredictionLog()
    getattr(log, kind).SetInParent()
    assert log.DESCRIPTOR.fields_by_name[kind].number == number
    write(tmp_path, log)
    assert refused(pair, tmp_path) == (Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")


def test_a_failing_request_fails_the_warm_up(pair, tmp_path):
    write(tmp_path, GOOD, predict_log(a=[1.0]))
    code, message = refused(pair, tmp_path)
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith("input size does not match signature: 1!=2")


def test_a_record_that_is_no_prediction_log_is_an_invalid_argument(pair, tmp_path):
    write(tmp_path, b"\xff\xff")
    assert refused(pair, tmp_path) == (
        Code.INVALID_ARGUMENT, f"Failed to parse warmup record 1 from {tmp_path / PATH}"
    )  # fmt: skip


def test_a_file_that_is_no_tfrecord_is_data_loss(pair, tmp_path):
    (tmp_path / PATH).parent.mkdir()
    (tmp_path / PATH).write_bytes(b"no TFRecord, but long enough for a header")
    code, message = refused(pair, tmp_path)
    assert code is Code.DATA_LOSS
    assert message.endswith(". Please verify your warmup data is in TFRecord format.")
