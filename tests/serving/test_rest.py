"""The REST protocol of a running server, one row a behaviour."""

import gzip
import json

import pytest

HALF = '{"signature_name": "half", %s}'
MATRIX = '{"signature_name": "matrix", %s}'


def row(name, *values):
    return pytest.param(*values, id=name)


ANSWERS = [
    row("rows_with_names_in_any_order", "pair", '{"instances": [{"a": 1.5, "b": 2}, {"b": 3, "a": 1}]}',
        {"predictions": [{"b": 2, "total": 35.0}, {"b": 3, "total": 40.0}]}),
    row("columns_ignore_extra_keys", "pair", '{"inputs": {"a": [1.5], "b": [2], "c": "extra"}}',
        {"outputs": {"b": [2], "total": [35.0]}}),
    row("one_input_and_one_output_make_plain_rows", "pair", HALF % '"instances": [1, 2]', {"predictions": [2.5, 3.0]}),
    row("one_input_and_one_output_make_plain_columns", "pair", HALF % '"inputs": [1, 2]', {"outputs": [2.5, 3.0]}),
    row("columns_may_name_the_only_input", "pair", HALF % '"inputs": {"x": [1, 2]}', {"outputs": [2.5, 3.0]}),
    row("rows_may_name_the_only_input", "pair", HALF % '"instances": [{"x": 1}]', {"predictions": [2.5]}),
    row("another_rank_than_the_signatures_is_run", "pair", HALF % '"instances": [[1, 2], [3, 4]]',
        {"predictions": [[2.5, 3.0], [3.5, 4.0]]}),
    row("a_column_may_be_a_scalar", "pair", HALF % '"inputs": 1', {"outputs": 2.5}),
    row("a_column_may_be_empty", "pair", HALF % '"inputs": []', {"outputs": []}),
    row("columns_allow_an_output_without_dimensions", "pair", MATRIX % '"inputs": [[1, 2]]',
        {"outputs": {"size": 2, "y": [[3.0, 3.0, 3.0]]}}),
    row("an_empty_signature_name_is_the_default", "pair", '{"signature_name": "", "inputs": {"a": [1], "b": [2]}}',
        {"outputs": {"b": [2], "total": [30.0]}}),
    row("unknown_keys_are_ignored", "pair", HALF % '"instances": [1], "other": [{"deep": [[]]}]',
        {"predictions": [2.5]}),
    row("the_first_of_duplicate_keys_wins", "pair", HALF % '"instances": [1], "instances": [2]',
        {"predictions": [2.5]}),
    row("text_after_the_document_is_ignored", "pair", HALF % '"instances": [1]' + "junk", {"predictions": [2.5]}),
    row("strings_go_in_raw_or_as_base64_and_bytes_outputs_come_back_as_base64", "texts",
        '{"instances": ["good", {"b64": "YmFk"}]}',
        {"predictions": [{"index": 0, "same": "good", "same_bytes": {"b64": "Z29vZA=="}},
                         {"index": 1, "same": "bad", "same_bytes": {"b64": "YmFk"}}]}),
    row("a_base64_object_may_be_the_whole_column", "texts", '{"inputs": {"b64": "YmFk"}}',
        {"outputs": {"index": 1, "same": "bad", "same_bytes": {"b64": "YmFk"}}}),
    row("uint8_images", "types", '{"signature_name": "pixels", "instances": [[[[1, 2, 3]]]]}',
        {"predictions": [{"first": [1, 2, 3], "mean": 2.0}]}),
    row("uint8_wraps", "types", '{"signature_name": "pixels", "instances": [[[[300, 2, 2]]]]}',
        {"predictions": [{"first": [44, 2, 2], "mean": 16.0}]}),
    row("wide_integers_keep_all_digits", "types",
        '{"inputs": {"f64": [0.1], "i64": -9223372036854775808, "flag": [[true]], "u64": 18446744073709551615}}',
        {"outputs": {"f64": [0.1], "flag": [[False]], "i64": -(2**63), "u64": 2**64 - 1}}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "body", "expected"), ANSWERS)
def test_predict_answers(server, model, body, expected):
    response = server.predict(model, body)
    assert (response.status_code, response.json()) == (200, expected)
    assert response.headers["content-type"] == "application/json"


PAIR = "/v1/models/pair:predict"
REFUSALS = [
    row("an_empty_body", PAIR, "", 400, "JSON Parse error: The document is empty"),
    row("broken_json_with_its_offset", PAIR, '{"instances": [1,]}', 400,
        "JSON Parse error: Invalid value. at offset: 17"),
    row("broken_json_on_an_unknown_model", "/v1/models/nobody:predict", "{", 400,
        "JSON Parse error: Missing a name for object member. at offset: 1"),
    row("no_object", PAIR, "[1]", 400, "JSON Value: [1] Is not object"),
    row("an_unknown_model_before_missing_instances", "/v1/models/nobody:predict", "{}", 404,
        "Servable not found for request: Latest(nobody)"),
    row("an_unknown_version", "/v1/models/pair/versions/9:predict", "{}", 404,
        "Servable not found for request: Specific(pair, 9)"),
    row("an_unknown_label", "/v1/models/pair/labels/stable:predict", "{}", 400,
        "Unrecognized servable version label: stable"),
    row("a_signature_name_that_is_no_text", PAIR, '{"signature_name": 1}', 400,
        'JSON Value: {\n    "signature_name": 1\n} not formatted correctly. '
        "'signature_name' key must be a string value."),
    row("an_unknown_signature", PAIR, '{"signature_name": "nothing", "instances": [1]}', 400,
        'Serving signature name: "nothing" not found in signature def'),
    row("neither_instances_nor_inputs", PAIR, '{"x": 1}', 400, "Missing 'inputs' or 'instances' key"),
    row("both_instances_and_inputs", PAIR, '{"inputs": 1, "instances": 1}', 400,
        'JSON Value: {\n    "inputs": 1,\n    "instances": 1\n} Not formatted correctly expecting only one of '
        "'inputs' or 'instances' keys to exist "),
    row("instances_that_are_no_list", PAIR, '{"instances": 1}', 400,
        "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array"),
    row("no_instances", PAIR, '{"instances": []}', 400,
        "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
    row("plain_rows_for_two_inputs", PAIR, '{"instances": [1]}', 400,
        "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
        "tensorinfo_map"),
    row("plain_columns_for_two_inputs", PAIR, '{"inputs": [1]}', 400,
        "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
        "tensorinfo_map"),
    row("a_wrong_field_in_a_row", PAIR, '{"instances": [{"a": 1, "c": 2}]}', 400,
        "Failed to process element: 0 key: c of 'instances' list. Error: INVALID_ARGUMENT: JSON object: "
        "does not have named input: c"),
    row("a_missing_field_in_a_row", PAIR, '{"instances": [{"a": 1, "b": 2}, {"a": 1}]}', 400,
        "Failed to process element: 1 of 'instances' list. JSON object: {\n    \"a\": 1\n} keys must be equal to: a,b"),
    row("a_missing_column", PAIR, '{"inputs": {"a": [1]}}', 400, "Missing named input: b in 'inputs' object."),
    row("a_text_for_a_float", PAIR, HALF % '"instances": ["one"]', 400,
        "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
        'JSON Value: "one" Type: String is not of expected type: float'),
    row("a_float_for_an_int", PAIR, '{"inputs": {"a": [1], "b": [1.0]}}', 400,
        "JSON Value: 1.0 Type: Number is not of expected type: int32"),
    row("ragged_columns", PAIR, HALF % '"inputs": [[1, 2], [3]]', 400,
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    row("ragged_rows", PAIR, HALF % '"instances": [[1, 2], [3]]', 400,
        "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
        "Expecting tensor size: 2 but got: 1"),
    row("bad_base64", "/v1/models/texts:predict", '{"inputs": [{"b64": "%%%"}]}', 400, "Unable to base64 decode"),
    row("a_half_column", "/v1/models/types:predict", '{"signature_name": "halves", "inputs": [1]}', 501,
        "Conversion of JSON Value: 1 to type: half"),
    row("a_row_of_an_output_without_dimensions", PAIR, MATRIX % '"instances": [[1, 2]]', 400,
        "Tensor name: size has no shape information "),
    row("a_verb_in_capitals", "/v1/models/pair:PREDICT", "{}", 400, "Malformed request: POST /v1/models/pair:PREDICT"),
    row("no_verb", "/v1/models/pair", "{}", 400, "Malformed request: POST /v1/models/pair"),
    row("a_query", PAIR + "?x=1", "{}", 400, "Malformed request: POST /v1/models/pair:predict?x=1"),
    row("a_version_that_is_no_number", "/v1/models/pair/versions/one:predict", "{}", 400,
        "Malformed request: POST /v1/models/pair/versions/one:predict"),
    row("a_version_over_64_bits", "/v1/models/pair/versions/9223372036854775808:predict", "{}", 400,
        "Failed to convert version: 9223372036854775808 to numeric."),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "message"), REFUSALS)
def test_predict_refuses(server, path, body, status, message):
    response = server.call("POST", path, body)
    assert (response.status_code, response.json()) == (status, {"error": message})
    assert response.headers["content-type"] == "application/json"


def test_an_error_of_the_graph_is_told_with_tensorflows_words(server):
    response = server.predict("pair", MATRIX % '"inputs": [[1, 2, 3]]')
    assert response.status_code == 400
    assert response.json()["error"].startswith("Matrix size-incompatible: In[0]: [1,3], In[1]: [2,3]")


def test_rows_are_printed_as_tf_serving_prints_them(server):
    plain = server.predict("pair", HALF % '"instances": [[0.5, -3], [1e9, NaN]]')
    assert plain.text == '{\n    "predictions": [[2.25, 0.5], [5e+08, NaN]\n    ]\n}'
    named = server.predict("pair", '{"instances": [{"a": 1, "b": 2}]}')
    assert named.text == (
        '{\n    "predictions": [\n        {\n            "b": 2,\n            "total": 30.0\n        }\n    ]\n}'
    )


def test_a_string_output_that_is_no_utf8_goes_out_as_its_bytes(server):
    response = server.predict("texts", '{"instances": [{"b64": "/wEi"}]}')  # ff 01 22
    assert b'"same": "\xff\\u0001\\""' in response.content


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_another_method_is_a_malformed_request(server, method):
    response = server.call(method, "/v1/models/pair")
    assert (response.status_code, response.json()) == (400, {"error": f"Malformed request: {method} /v1/models/pair"})


def test_a_path_outside_v1_is_not_found_and_not_json(server):
    response = server.call("GET", "/metrics")
    assert response.status_code == 404
    assert response.headers["content-type"].startswith("text/html")


def test_a_gzip_body_is_inflated_and_a_broken_one_counts_as_empty(server):
    body = (HALF % '"instances": [1]').encode()
    good = server.call("POST", PAIR, gzip.compress(body), **{"Content-Encoding": "gzip"})
    broken = server.call("POST", PAIR, gzip.compress(body)[:-9], **{"Content-Encoding": "gzip"})
    assert good.json() == {"predictions": [2.5]}
    assert broken.json() == {"error": "JSON Parse error: The document is empty"}


def test_deep_nesting_in_an_ignored_key_is_answered(server):
    deep = '"other": ' + "[" * 20_000 + "]" * 20_000
    assert server.predict("pair", HALF % f'{deep}, "instances": [1]').json() == {"predictions": [2.5]}


def test_percent_encoded_names_are_decoded(server):
    assert server.call("POST", "/V1/MODELS/p%61ir:predict", HALF % '"instances": [1]').json() == {"predictions": [2.5]}


STATUS = [
    row("all_versions_by_name", "/v1/models/types", 200,
        {"model_version_status": [{"version": "3", "state": "AVAILABLE",
                                   "status": {"error_code": "OK", "error_message": ""}}]}),
    row("one_version", "/v1/models/types/versions/3", 200,
        {"model_version_status": [{"version": "3", "state": "AVAILABLE",
                                   "status": {"error_code": "OK", "error_message": ""}}]}),
    row("a_label_is_ignored", "/v1/models/types/labels/any", 200,
        {"model_version_status": [{"version": "3", "state": "AVAILABLE",
                                   "status": {"error_code": "OK", "error_message": ""}}]}),
    row("an_unknown_model", "/v1/models/nobody", 404, {"error": "Could not find any versions of model nobody"}),
    row("an_unknown_version", "/v1/models/types/versions/9", 404,
        {"error": "Could not find version 9 of model types"}),
    row("no_name", "/v1/models", 400, {"error": "Missing model name in request."}),
    row("the_metadata_of_an_unknown_model", "/v1/models/nobody/metadata", 404,
        {"error": "Servable not found for request: Latest(nobody)"}),
    row("a_version_and_a_label", "/v1/models/types/versions/3/labels/any", 400,
        {"error": "Malformed request: GET /v1/models/types/versions/3/labels/any"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "status", "expected"), STATUS)
def test_status_answers(server, path, status, expected):
    response = server.call("GET", path)
    assert (response.status_code, response.json()) == (status, expected)


def test_metadata_prints_signatures_with_defaults_and_sizes_as_texts(server):
    answer = server.call("GET", "/v1/models/pair/versions/2/metadata").json()
    assert answer["model_spec"] == {"name": "pair", "signature_name": "", "version": "2"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert "__saved_model_init_op" in signatures
    half = signatures["half"]
    assert half["inputs"] == {
        "x": {
            "dtype": "DT_FLOAT",
            "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
            "name": half["inputs"]["x"]["name"],
        }
    }
    assert half["method_name"] == "tensorflow/serving/predict"
    assert json.dumps(half["defaults"]) == "{}"
