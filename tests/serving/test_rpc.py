"""The gRPC protocol of a running server, with tensorflow-serving-api's own messages and stubs."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

HALF = 'model_spec { name: "pair" signature_name: "half" }'
X = 'inputs { key: "x" value { dtype: DT_FLOAT tensor_shape { dim { size: 2 } } float_val: 1 float_val: 3 } }'
A = 'inputs { key: "a" value { dtype: DT_FLOAT tensor_shape { dim { size: 1 } } float_val: 1 } }'
B = 'inputs { key: "b" value { dtype: DT_INT32 tensor_shape { dim { size: 1 } } int_val: 2 } }'


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.rpc) as channel:
        yield channel


@pytest.fixture(scope="module")
def prediction(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(text: str) -> predict_pb2.PredictRequest:
    return text_format.Parse(text, predict_pb2.PredictRequest())


def refused(call, message) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call(message, timeout=10)
    return raised.value.code().name, raised.value.details()


def test_predict_answers_in_typed_fields_with_the_version_that_was_used(prediction):
    response = prediction.Predict(request(f'model_spec {{ name: "pair" }} {A} {B}'))
    assert (response.model_spec.name, response.model_spec.version.value) == ("pair", 2)
    assert response.model_spec.signature_name == "serving_default"
    assert list(response.outputs["total"].float_val) == [30.0]
    assert list(response.outputs["b"].int_val) == [2]
    assert response.outputs["total"].tensor_content == b""


def test_tensor_content_is_read_and_strings_come_back_as_bytes(prediction):
    message = request('model_spec { name: "texts" }')
    message.inputs["text"].CopyFrom(tf.make_tensor_proto([b"bad", b"\xff\x00"]))
    response = prediction.Predict(message)
    assert list(response.outputs["same"].string_val) == [b"bad", b"\xff\x00"]
    assert list(response.outputs["index"].int64_val) == [1, -1]
    image = request('model_spec { name: "types" signature_name: "pixels" }')
    image.inputs["image"].CopyFrom(tf.make_tensor_proto(np.full([1, 2, 2, 3], 200, np.uint8)))
    assert list(prediction.Predict(image).outputs["mean"].float_val) == [200.0]


def test_half_tensors_are_answered_in_half_val(prediction):
    message = request('model_spec { name: "types" signature_name: "halves" }')
    message.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float16([1.5])))
    assert tf.make_ndarray(prediction.Predict(message).outputs["x"]).tolist() == [3.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("float_val: 1", [2.5, 2.5]), ("", [2.0, 2.0]), ("float_val: 1 float_val: 2 float_val: 3", [2.5, 3.0])],
    ids=["the_last_value_repeats", "no_values_are_zeros", "values_too_many_are_cut"],
)
def test_a_typed_field_of_another_length(prediction, value, expected):
    tensor = f"dtype: DT_FLOAT tensor_shape {{ dim {{ size: 2 }} }} {value}"
    response = prediction.Predict(request(f'{HALF} inputs {{ key: "x" value {{ {tensor} }} }}'))
    assert list(response.outputs["y"].float_val) == expected


def test_output_filter_leaves_only_what_it_names(prediction):
    response = prediction.Predict(request(f'model_spec {{ name: "pair" }} {A} {B} output_filter: "b"'))
    assert set(response.outputs) == {"b"}


REFUSALS = [
    ("no_model_spec", "", "INVALID_ARGUMENT", "Missing ModelSpec"),
    ("no_name", "model_spec {}", "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    ("an_unknown_model", 'model_spec { name: "nobody" }', "NOT_FOUND",
     "Servable not found for request: Latest(nobody)"),
    ("an_unknown_version", 'model_spec { name: "pair" version { value: 9 } }', "NOT_FOUND",
     "Servable not found for request: Specific(pair, 9)"),
    ("an_unknown_label", 'model_spec { name: "pair" version_label: "stable" }', "INVALID_ARGUMENT",
     "Unrecognized servable version label: stable"),
    ("an_unknown_signature", 'model_spec { name: "pair" signature_name: "no" }', "FAILED_PRECONDITION",
     'Serving signature key "no" not found.'),
    ("too_few_inputs", f'model_spec {{ name: "pair" }} {A}', "INVALID_ARGUMENT",
     "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. Missing but required: {b}."),
    ("too_many_inputs", f'model_spec {{ name: "pair" }} {A} {B} {X}', "INVALID_ARGUMENT",
     "input size does not match signature: 3!=2 len({a,b,x}) != len({a,b}). Sent extra: {x}. "
     "Missing but required: {}."),
    ("a_wrong_field", f"{HALF} {A}", "INVALID_ARGUMENT", "Signature input alias: x(feed name: "),
    ("a_wrong_dtype", f'{HALF} inputs {{ key: "x" value {{ dtype: DT_INT32 int_val: 1 }} }}', "INVALID_ARGUMENT",
     "Expects arg[0] to be float but int32 is provided"),
    ("no_dtype", f'{HALF} inputs {{ key: "x" value {{ float_val: 1 }} }}', "INVALID_ARGUMENT",
     "tensor parsing error: x"),
    ("a_negative_dimension", f"{HALF} {X}".replace("size: 2", "size: -1"), "INVALID_ARGUMENT",
     "tensor parsing error: x"),
    ("content_of_another_length", f'{HALF} inputs {{ key: "x" value {{ dtype: DT_FLOAT tensor_content: "abc" }} }}',
     "INVALID_ARGUMENT", "tensor parsing error: x"),
    ("an_unknown_output", f'{HALF} {X} output_filter: "z"', "INVALID_ARGUMENT",
     "output tensor alias not found in signature: z Outputs expected to be in the set {y}."),
    ("an_output_named_twice", f'{HALF} {X} output_filter: "y" output_filter: "y"', "INVALID_ARGUMENT",
     "duplicate output tensor alias: y"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "code", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_predict_refuses(prediction, text, code, message):
    found, details = refused(prediction.Predict, request(text))
    assert (found, details[: len(message)]) == (code, message)


def test_a_long_message_is_cut_at_1024_characters(prediction):
    _, details = refused(prediction.Predict, request(f'model_spec {{ name: "{"n" * 5000}" }}'))
    assert len(details) == 1024
    assert details.endswith("...TRUNCATED")


def test_a_service_that_exists_as_a_message_only_is_unimplemented(channel):
    run = channel.unary_unary("/tensorflow.serving.SessionService/SessionRun", request_serializer=bytes)
    assert refused(run, b"")[0] == "UNIMPLEMENTED"


def test_metadata_is_a_packed_signature_map(prediction):
    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    message.model_spec.name = "pair"
    response = prediction.GetModelMetadata(message)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def["serving_default"].inputs) == {"a", "b"}
    assert (response.model_spec.name, response.model_spec.version.value) == ("pair", 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "GetModelMetadataRequest must specify at least one metadata_field"),
        (["weights"], "Metadata field weights is not supported"),
    ],
    ids=["no_field", "an_unknown_field"],
)
def test_metadata_refuses(prediction, fields, message):
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    asked.model_spec.name = "pair"
    assert refused(prediction.GetModelMetadata, asked) == ("INVALID_ARGUMENT", message)


def test_status_lists_versions_and_refuses_an_unknown_model(channel):
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = "types"
    (version,) = models.GetModelStatus(message).model_version_status
    assert (version.version, version.State.Name(version.state), version.status.error_code) == (3, "AVAILABLE", 0)
    message.model_spec.name = "nobody"
    assert refused(models.GetModelStatus, message) == ("NOT_FOUND", "Could not find any versions of model nobody")


def test_health_is_serving(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "ModelService", "PredictionService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
