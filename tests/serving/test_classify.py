"""Classify, regress and multi-inference: JSON and messages in, results or TF Serving's words out."""

import json

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow.core.example import example_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.server import json_examples
from serving.server.errors import RequestError
from serving.server.examples import serialized

CLASSIFY, REGRESS = "/v1/models/examples:classify", "/v1/models/examples:regress"


def row(name, *values):
    return pytest.param(*values, id=name)


def examples(text: str, signature: str = "") -> str:
    return f'{{"signature_name": "{signature}", "examples": {text}}}'


RESULTS = [
    row("labels_and_scores", CLASSIFY, examples('[{"x": 1.5}, {"x": -0.25}]'),
        [[["low", -1.5], ["high", 1.5]], [["low", 0.25], ["high", -0.25]]]),
    row("scores_alone_have_empty_labels", CLASSIFY, examples('[{"x": 1.0}]', "scores"), [[["", 0.333333343]]]),
    row("labels_alone_have_scores_of_zero", CLASSIFY, examples('[{"x": 1.0, "s": "a"}]', "labels"), [[["a", 0.0]]]),
    row("base64_is_bytes", CLASSIFY, examples('[{"x": 1.0, "s": {"b64": "YQ=="}}]', "labels"), [[["a", 0.0]]]),
    row("a_context_goes_to_each_example", CLASSIFY,
        '{"signature_name": "labels", "context": {"x": 1.0, "s": "c"}, "examples": [{}, {"s": "own"}]}',
        [[["c", 0.0]], [["own", 0.0]]]),
    row("regress", REGRESS, examples('[{"x": 1.5}, {"x": [-0.25]}]', "regress"), [3.0, -0.5]),
    row("regress_a_column", REGRESS, examples('[{"x": 1.0}]', "regress_column"), [0.333333343]),
    row("a_feature_that_no_one_asked_for", REGRESS,
        examples('[{"x": 1.0, "y": [1, 2], "": [], "\\ud83d\\ude00": true}]', "regress"), [2.0]),
    row("a_name_that_is_no_utf8", REGRESS, examples('[{"x": 1.0, "\\udc00": [1, 2]}]', "regress"), [2.0]),
    row("unknown_keys_are_ignored", REGRESS, '{"signature_name": "regress", "instances": 1, "examples": [{"x": 1.0}]}',
        [2.0]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "results"), RESULTS)
def test_examples_in_json_are_answered_with_results(rest, path, body, results):
    assert rest.post(path, body) == (200, {"results": results})


def test_the_results_are_printed_as_tf_serving_prints_them(rest):
    body = examples('[{"x": 1.5}, {"x": 0.0}]').encode()
    assert rest.call("POST", CLASSIFY, body)[1] == (
        b'{\n    "results": [[["low", -1.5], ["high", 1.5]], [["low", -0.0], ["high", 0.0]]\n    ]\n}'
    )
    body = examples('[{"x": 1.5}, {"x": 0.0}]', "regress").encode()
    assert rest.call("POST", REGRESS, body)[1] == b'{\n    "results": [3.0, 0.0]\n}'


UNKNOWN = "/v1/models/nobody:classify"
MISSING = "When method is classify, key 'examples' is expected and was not found"
JSON_REFUSALS = [
    row("broken_json", UNKNOWN, "{", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
    row("an_empty_body", UNKNOWN, "", 400, "JSON Parse error: The document is empty"),
    row("no_object", UNKNOWN, "[]", 400, "JSON Value: [] Is not object"),
    row("a_signature_name_that_is_no_text", UNKNOWN, '{"signature_name": null}', 400,
        'JSON Value: {\n    "signature_name": null\n} not formatted correctly. '
        "'signature_name' key must be a string value."),
    row("no_examples", UNKNOWN, "{}", 400, f"JSON Value: {{}} {MISSING}"),
    row("no_examples_to_regress", REGRESS, '{"instances": [1]}', 400,
        f'JSON Value: {{\n    "instances": [1]\n}} {MISSING}'),
    row("examples_that_are_no_list", UNKNOWN, '{"examples": {}}', 400,
        "JSON Value: {\n    \"examples\": {}\n} Expecting 'examples' value to be an list/array"),
    row("an_empty_list", UNKNOWN, '{"examples": []}', 400,
        "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array"),
    row("a_number_for_an_example", UNKNOWN, '{"examples": [1]}', 400,
        "Example must be JSON object but got JSON Number"),
    row("a_list_for_a_context", UNKNOWN, '{"context": []}', 400, "Example must be JSON object but got JSON Array"),
    row("mixed_kinds", UNKNOWN, '{"examples": [{"x": [1.5, 2]}]}', 400,
        "Unexpected element type in feature: x expecting type: float"),
    row("a_text_among_integers", UNKNOWN, '{"examples": [{"x": [true, 2, "a"]}]}', 400,
        "Unexpected element type in feature: x expecting type: int64"),
    row("a_float_among_texts", UNKNOWN, '{"examples": [{"x": ["a", {"b64": ""}, 1.5]}]}', 400,
        "Unexpected element type in feature: x expecting type: bytes"),
    row("a_null", UNKNOWN, '{"examples": [{"x": null}]}', 400,
        "Feature: x has element with unexpected JSON type: Null"),
    row("a_list_in_a_list", UNKNOWN, '{"examples": [{"x": [[1]]}]}', 400,
        "Feature: x has element with unexpected JSON type: Array"),
    row("an_object", UNKNOWN, '{"examples": [{"x": {"b64": "YQ==", "c": 1}}]}', 400,
        "Feature: x has element with unexpected JSON type: Object"),
    row("an_integer_over_64_bits_with_sign", UNKNOWN, '{"examples": [{"x": 9223372036854775808}]}', 400,
        "Feature: x has uint64_t element. Only int64_t is supported."),
    row("bad_base64", UNKNOWN, '{"examples": [{"x": {"b64": "Y"}}]}', 400, "Unable to base64 decode"),
    row("only_then_the_model", UNKNOWN, '{"examples": [{"x": 1}]}', 404,
        "Servable not found for request: Latest(nobody)"),
    row("an_unknown_label", "/v1/models/examples/labels/new:regress", '{"examples": [{"x": 1}]}', 400,
        "Unrecognized servable version label: new"),
    row("an_unknown_version", "/v1/models/examples/versions/7:regress", '{"examples": [{"x": 1}]}', 404,
        "Servable not found for request: Specific(examples, 7)"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "message"), JSON_REFUSALS)
def test_json_is_refused_as_a_whole_before_the_model_is_looked_up(rest, path, body, status, message):
    assert rest.post(path, body) == (status, message)


LIKE = "Expected Tensor shape: [batch_size num_classes] but got"
SIGNATURES = [
    row("an_unknown_one", CLASSIFY, "nothing", "No signature was found with the name: nothing"),
    row("an_unknown_one_to_regress", REGRESS, "nothing", "No signature was found with the name: nothing"),
    row("two_inputs", REGRESS, "two_inputs", "Expected one input Tensor."),
    row("two_inputs_to_classify", CLASSIFY, "two_inputs", "Expected one input Tensor."),
    row("three_outputs", CLASSIFY, "three", "Expected one or two output Tensors, found 3"),
    row("two_outputs_to_regress", REGRESS, "uneven", "Expected one output Tensor."),
    row("an_input_of_another_name", CLASSIFY, "other_name",
        "No classification inputs found in SignatureDef: inputs {\n"),
    row("an_input_of_another_name_to_regress", REGRESS, "other_name",
        "No regression inputs found in SignatureDef: inputs {\n"),
    row("outputs_of_other_names", CLASSIFY, "neither",
        'Expected classification signature outputs to contain at least one of "classes" or "scores". '
        "Signature was: inputs {\n"),
    row("an_output_of_another_name_to_regress", REGRESS, "neither", "No regression outputs found in SignatureDef: in"),
    row("scores_without_classes", CLASSIFY, "flat_scores", f"{LIKE} [2]"),
    row("scores_of_another_type", CLASSIFY, "int_scores", "Expected scores Tensor of DT_FLOAT. Got: DT_INT32"),
    row("labels_of_another_type", CLASSIFY, "float_labels", "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
    row("scores_of_one_example", CLASSIFY, "first_scores", "Expected scores output batch size of 2. Got: 1"),
    row("labels_and_scores_that_differ", CLASSIFY, "uneven",
        "Tensors class and score should match in dim_size(1). Got 2 vs. 1"),
    row("two_numbers_an_example", REGRESS, "wide",
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]"),
    row("integers", REGRESS, "int_outputs", "Expected output Tensor of DT_FLOAT.  Got: DT_INT64"),
    row("a_number_of_one_example", REGRESS, "first_output",
        "Input batch size did not match output batch size: 2 vs. 1"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "signature", "message"), SIGNATURES)
def test_a_signature_that_does_not_fit_the_method_is_refused(rest, path, signature, message):
    status, found = rest.post(path, examples('[{"x": 1.0}, {"x": 2.0}]', signature))
    assert (status, found[: len(message)]) == (400, message)


def test_an_integer_for_a_float_feature_fails_in_the_graph(rest):
    status, message = rest.post(REGRESS, examples('[{"x": 1}]', "regress"))
    assert status == 400
    assert "Data types don't match. Data type: int64 but expected type: float" in message


def filled(body: str) -> list[example_pb2.Example]:
    request = json_examples.fill(regression_pb2.RegressionRequest(), body.encode())
    return [example_pb2.Example.FromString(raw) for raw in serialized(request.input)]


def test_features_take_the_kind_of_their_json():
    (example,) = filled(
        '{"examples": [{"f": [1.5, 1e39, NaN], "i": [1, true, -9223372036854775808], "b": ["\\u00e9", {"b64": "/w=="}],'
        ' "none": [], "cut\\u0000": 1, "cut\\u0000off": 2, "one": 0.5}]}'
    )
    features = example.features.feature
    np.testing.assert_array_equal(features["f"].float_list.value, [1.5, np.inf, np.nan])
    assert list(features["i"].int64_list.value) == [1, 1, -(2**63)]
    assert list(features["b"].bytes_list.value) == ["\u00e9".encode(), b"\xff"]
    assert list(features["cut"].int64_list.value) == [2]
    assert features["none"].WhichOneof("kind") is None
    assert set(features) == {"f", "i", "b", "none", "cut", "one"}


def test_a_context_stands_before_each_example_so_that_the_example_wins():
    first, second = filled('{"context": {"a": 1, "b": 2}, "examples": [{"b": 3}, {}]}')
    values = [{name: list(f.int64_list.value) for name, f in e.features.feature.items()} for e in (first, second)]
    assert values == [{"a": [1], "b": [3]}, {"a": [1], "b": [2]}]


def test_an_input_without_examples_is_refused():
    for text in ("", "example_list {}", "example_list_with_context { context { features {} } }"):
        with pytest.raises(RequestError, match="Input is empty"):
            serialized(text_format.Parse(text, input_pb2.Input()))


# gRPC


@pytest.fixture(scope="module")
def prediction(server):
    with grpc.insecure_channel(server.rpc) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def example(x: float) -> str:
    return f'examples {{ features {{ feature {{ key: "x" value {{ float_list {{ value: {x} }} }} }} }} }}'


INPUT = f"input {{ example_list {{ {example(1.5)} {example(-0.25)} }} }}"


def spec(signature: str = "", model: str = "examples") -> str:
    return f'model_spec {{ name: "{model}" signature_name: "{signature}" }}'


def call(prediction, method: str, text: str):
    kind = {
        "Classify": classification_pb2.ClassificationRequest,
        "Regress": regression_pb2.RegressionRequest,
        "MultiInference": inference_pb2.MultiInferenceRequest,
    }[method]
    return getattr(prediction, method)(text_format.Parse(text, kind()), timeout=10)


def test_classify_answers_with_the_version_and_signature_that_were_used(prediction):
    response = call(prediction, "Classify", f"{spec()} {INPUT}")
    assert (response.model_spec.name, response.model_spec.version.value) == ("examples", 1)
    assert response.model_spec.signature_name == "serving_default"
    found = [[(c.label, c.score) for c in one.classes] for one in response.result.classifications]
    assert found == [[("low", -1.5), ("high", 1.5)], [("low", 0.25), ("high", -0.25)]]


def test_regress_answers_with_a_number_an_example(prediction):
    response = call(prediction, "Regress", f"{spec('regress')} {INPUT}")
    assert [one.value for one in response.result.regressions] == [3.0, -0.5]
    assert (response.model_spec.version.value, response.model_spec.signature_name) == (1, "regress")


def task(signature: str, method: str, model: str = "examples") -> str:
    return f'tasks {{ {spec(signature, model)} method_name: "{method}" }}'


TO_CLASSIFY, TO_REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


def test_multi_inference_answers_in_the_order_of_its_tasks(prediction):
    tasks = task("regress", TO_REGRESS) + task("", TO_CLASSIFY) + task("regress_column", TO_REGRESS)
    response = call(prediction, "MultiInference", f"{tasks} {INPUT}")
    specs = [(r.model_spec.name, r.model_spec.version.value, r.model_spec.signature_name) for r in response.results]
    assert specs == [("examples", 1, name) for name in ("regress", "serving_default", "regress_column")]
    first, second, third = response.results
    assert [one.value for one in first.regression_result.regressions] == [3.0, -0.5]
    assert [c.label for c in second.classification_result.classifications[0].classes] == ["low", "high"]
    assert [one.value for one in third.regression_result.regressions] == [0.5, np.float32(-0.25 / 3)]


RPC_REFUSALS = [
    row("no_model_spec", "Classify", "", "INVALID_ARGUMENT", "Missing ModelSpec"),
    row("no_model_spec_to_regress", "Regress", "", "INVALID_ARGUMENT", "Missing ModelSpec"),
    row("no_name", "Classify", "model_spec {}", "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    row("an_unknown_model", "Regress", spec(model="nobody"), "NOT_FOUND",
        "Servable not found for request: Latest(nobody)"),
    row("an_unknown_signature", "Classify", spec("nothing"), "INVALID_ARGUMENT",
        "No signature was found with the name: nothing"),
    row("a_signature_before_an_input", "Regress", spec("uneven"), "INVALID_ARGUMENT", "Expected one output Tensor."),
    row("no_input", "Classify", spec(), "INVALID_ARGUMENT", "Input is empty."),
    row("an_empty_input", "Regress", spec("regress") + " input { example_list {} }", "INVALID_ARGUMENT",
        "Input is empty."),
    row("no_tasks", "MultiInference", INPUT, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    row("a_task_without_a_name", "MultiInference",
        f"{task('regress', TO_REGRESS)} {task('', TO_CLASSIFY, '')} {INPUT}", "INVALID_ARGUMENT",
        "Found ModelSpec with an empty model name."),
    row("tasks_of_two_models", "MultiInference",
        f"{task('regress', TO_REGRESS)} {task('', TO_CLASSIFY, 'pair')} {INPUT}", "INVALID_ARGUMENT",
        "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
    row("a_signature_twice", "MultiInference",
        f"{task('', TO_CLASSIFY)} {task('serving_default', TO_REGRESS)} {INPUT}", "INVALID_ARGUMENT",
        "Duplicate evaluation of signature: serving_default"),
    row("a_task_of_an_unknown_signature", "MultiInference", f"{task('nothing', TO_CLASSIFY)} {INPUT}",
        "INVALID_ARGUMENT", "Requested signature not found in model graph: nothing"),
    row("another_method", "MultiInference", f"{task('', 'tensorflow/serving/predict')} {INPUT}", "UNIMPLEMENTED",
        "Unsupported signature method_name: tensorflow/serving/predict"),
    row("the_first_mistake_wins", "MultiInference",
        f"{task('', 'predict')} {task('regress', TO_REGRESS, '')} {INPUT}", "UNIMPLEMENTED",
        "Unsupported signature method_name: predict"),
    row("a_task_that_its_signature_does_not_fit", "MultiInference", f"{task('', TO_REGRESS)} {INPUT}",
        "INVALID_ARGUMENT", "Expected one output Tensor."),
    row("tasks_without_an_input", "MultiInference", task("", TO_CLASSIFY), "INVALID_ARGUMENT", "Input is empty."),
]  # fmt: skip


@pytest.mark.parametrize(("method", "text", "code", "message"), RPC_REFUSALS)
def test_a_message_is_refused_in_tf_servings_order(prediction, method, text, code, message):
    with pytest.raises(grpc.RpcError) as raised:
        call(prediction, method, text)
    assert (raised.value.code().name, raised.value.details()) == (code, message)


def test_the_same_routes_are_served_by_the_process(server):
    response = server.call("POST", CLASSIFY, examples('[{"x": 1.5}]'))
    assert (response.status_code, json.loads(response.content)) == (200, {"results": [[["low", -1.5], ["high", 1.5]]]})
    assert server.call("POST", CLASSIFY.upper(), "{}").json() == {
        "error": f"Malformed request: POST {CLASSIFY.upper()}"
    }
