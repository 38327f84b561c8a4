"""Predict over REST where TF Serving surprises: order of checks, odd JSON, shapes that differ from the signature's.

The application runs in this process. test_rest.py has the common cases over the wire, test_json_*.py the texts.
"""

from base64 import b64encode

import pytest
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.server.policy import Policy
from tests.serving.asgi import Rest

PAIR, TEXTS, TYPES = (f"/v1/models/{name}:predict" for name in ("pair", "texts", "types"))

_FEATURES = {"x": feature_pb2.Feature(float_list={"value": [1.5]})}
EXAMPLE = b64encode(example_pb2.Example(features={"feature": _FEATURES}).SerializeToString()).decode()


def row(name, *values):
    return pytest.param(*values, id=name)


def half(rest: str) -> str:
    return f'{{"signature_name": "half", {rest}}}'


ANSWERS = [
    row("numbers_that_are_no_json", PAIR, half('"instances": [Inf, -Infinity, 1e39]'),
        {"predictions": [float("inf"), float("-inf"), float("inf")]}),
    row("infinity_from_an_exponent_too_large_by_little", PAIR, half('"instances": [2e308]'),
        {"predictions": [float("inf")]}),
    row("a_byte_order_mark", PAIR, b"\xef\xbb\xbf" + half('"instances": [1]').encode(), {"predictions": [2.5]}),
    row("bytes_that_are_no_utf8_in_an_ignored_key", PAIR, half('"instances": [1], "x": "\xff"').encode("latin-1"),
        {"predictions": [2.5]}),
    row("a_zero_byte_after_the_document", PAIR, half('"instances": [1]') + "\0{", {"predictions": [2.5]}),
    row("the_first_signature_name_wins", PAIR, '{"signature_name": "half", "signature_name": 1, "instances": [1]}',
        {"predictions": [2.5]}),
    row("five_hundred_thousand_lists_in_an_ignored_key", PAIR,
        half('"x": ' + "[" * 500_000 + "]" * 500_000 + ', "instances": [1]'), {"predictions": [2.5]}),
    row("integers_for_floats", PAIR, half('"instances": [1, 18446744073709551615]'),
        {"predictions": [2.5, 9.22337204e18]}),
    row("a_rank_more_than_the_signature_has", PAIR, half('"instances": [[[1, 2]], [[3, 4]]]'),
        {"predictions": [[[2.5, 3.0]], [[3.5, 4.0]]]}),
    row("first_dimensions_that_broadcast", PAIR, '{"inputs": {"a": [1, 2], "b": 3}}',
        {"outputs": {"b": 3, "total": [40.0, 50.0]}}),
    row("rows_of_nothing", PAIR, half('"instances": [[], []]'), {"predictions": [[], []]}),
    row("columns_of_nothing", PAIR, half('"inputs": [[], []]'), {"outputs": [[], []]}),
    row("base64_beside_texts", TEXTS, '{"instances": ["good", {"b64": " YmFk\\n"}, {"b64": "YmF"}]}',
        {"predictions": [{"index": 0, "same": "good", "same_bytes": {"b64": "Z29vZA=="}},
                         {"index": 1, "same": "bad", "same_bytes": {"b64": "YmFk"}},
                         {"index": -1, "same": "ba", "same_bytes": {"b64": "YmE="}}]}),
    row("named_base64", TEXTS, '{"instances": [{"text": {"b64": "YmFk"}}]}',
        {"predictions": [{"index": 1, "same": "bad", "same_bytes": {"b64": "YmFk"}}]}),
    row("a_text_with_a_zero", TEXTS, '{"inputs": ["a\\u0000"]}',
        {"outputs": {"index": [-1], "same": ["a\0"], "same_bytes": [{"b64": "YQA="}]}}),
    row("classify_signatures_may_be_predicted", "/v1/models/examples:predict",
        f'{{"signature_name": "regress", "instances": [{{"b64": "{EXAMPLE}"}}]}}', {"predictions": [3.0]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "expected"), ANSWERS)
def test_predict_takes(rest, path, body, expected):
    assert rest.post(path, body) == (200, expected)


REFUSALS = [
    row("a_number_beyond_a_double", PAIR, half('"instances": [1e400]'), 400,
        "JSON Parse error: Number too big to be stored in double. at offset: 41"),
    row("single_quotes", PAIR, "{'instances': [1]}", 400,
        "JSON Parse error: Missing a name for object member. at offset: 1"),
    row("a_trailing_comma", PAIR, '{"instances": [1],}', 400,
        "JSON Parse error: Missing a name for object member. at offset: 18"),
    row("a_comment", PAIR, '{"instances": [1] // one\n}', 400,
        "JSON Parse error: Missing a comma or '}' after an object member. at offset: 18"),
    row("a_leading_zero", PAIR, half('"instances": [01]'), 400,
        "JSON Parse error: Missing a comma or ']' after an array element. at offset: 42"),
    row("half_a_document", PAIR, '{"instances": [1', 400,
        "JSON Parse error: Missing a comma or ']' after an array element. at offset: 16"),
    row("white_space_alone", PAIR, " \n", 400, "JSON Parse error: The document is empty. at offset: 2"),
    row("no_object", PAIR, '"text"', 400, 'JSON Value: "text" Is not object'),
    row("a_signature_name_before_the_model", "/v1/models/nobody:predict", '{"signature_name": []}', 400,
        'JSON Value: {\n    "signature_name": []\n} not formatted correctly. '
        "'signature_name' key must be a string value."),
    row("the_model_before_the_signature", "/v1/models/nobody:predict", '{"signature_name": "no"}', 404,
        "Servable not found for request: Latest(nobody)"),
    row("the_signature_before_the_instances", PAIR, '{"signature_name": "no"}', 400,
        'Serving signature name: "no" not found in signature def'),
    row("a_signature_without_inputs", PAIR, '{"signature_name": "__saved_model_init_op", "instances": [1]}', 400,
        "Failed to get input map for signature: __saved_model_init_op"),
    row("base64_rows_for_two_inputs", PAIR, '{"instances": [{"b64": "YQ=="}]}', 400,
        "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
        'JSON Value: {\n    "b64": "YQ=="\n} Type: Object is not of expected type: float'),
    row("a_half_row", TYPES, '{"signature_name": "halves", "instances": [1]}', 400,
        "Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: "
        "Conversion of JSON Value: 1 to type: half"),
    row("half_answers", TYPES, '{"signature_name": "halves", "inputs": []}', 200, {"outputs": []}),
    row("rows_whose_outputs_have_no_dimension", PAIR,
        '{"signature_name": "matrix", "instances": [[1, 2], [3, 4]]}', 400,
        "Tensor name: size has no shape information "),
    row("columns_that_do_not_broadcast", PAIR, '{"inputs": {"a": [1, 2], "b": [1, 2, 3]}}', 400,
        "Incompatible shapes: [2] vs. [3]"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "expected"), REFUSALS)
def test_predict_refuses(rest, path, body, status, expected):
    found_status, found = rest.post(path, body)
    if isinstance(found, str):
        found = found.partition("\n\t [[{{")[0]  # the graph names its node there
        found = found.replace("[3] vs. [2]", "[2] vs. [3]")  # TensorFlow adds in either order
    assert (found_status, found) == (status, expected)


@pytest.fixture(scope="module")
def checking(saved_models):
    """The same models under --enable_signature_method_name_check, with a signature of each method."""
    application = Rest([saved_models / "examples"], Policy(checks_method=True))
    with application.models.lease("examples") as (_, servable):
        signatures = servable.signatures
        for name, method in {
            "serving_default": "tensorflow/serving/classify",
            "regress": "tensorflow/serving/regress",
            "wide": "something/else",
        }.items():
            signatures[name] = meta_graph_pb2.SignatureDef.FromString(signatures[name].SerializeToString())
            signatures[name].method_name = method
    yield application
    application.close()


CHECKED = [
    row("classify_a_classify_signature", "classify", "serving_default", 200, ""),
    row("regress_a_regress_signature", "regress", "regress", 200, ""),
    row("predict_a_classify_signature", "predict", "serving_default", 200, ""),
    row("classify_a_predict_signature", "classify", "scores", 400,
        "Expected classification signature method_name to be tensorflow/serving/classify. "
        "Was: tensorflow/serving/predict"),
    row("regress_a_predict_signature", "regress", "regress_column", 400,
        "Expected regression signature method_name to be tensorflow/serving/regress. Was: tensorflow/serving/predict"),
    row("predict_another_signature", "predict", "wide", 500,
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: something/else"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "signature", "status", "message"), CHECKED)
def test_method_names_are_checked_when_a_flag_asks_for_it(checking, verb, signature, status, message):
    values = f'"instances": [{{"b64": "{EXAMPLE}"}}]' if verb == "predict" else '"examples": [{"x": 1.0}]'
    found, answer = checking.post(f"/v1/models/examples:{verb}", f'{{"signature_name": "{signature}", {values}}}')
    assert found == status
    assert message in str(answer)
