"""Tensors in JSON: every type's range, base64, shapes, and what is said of anything else."""

import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.server.errors import RequestError
from serving.server.json_parse import parse
from serving.server.json_tensors import read_columns, read_rows


def column(text: str, dtype: str):
    return read_columns(parse(text.encode()), {"x": tf.dtypes.as_dtype(dtype).as_datatype_enum})["x"]


def refusal(read, *arguments) -> tuple[str, str]:
    with pytest.raises(RequestError) as raised:
        read(*arguments)
    return raised.value.code.name, raised.value.message


VALUES = [
    ("float", "[1, 2.5, -0.0, NaN, -Infinity, 1e39, 18446744073709551615]",
     np.float32([1, 2.5, -0.0, np.nan, -np.inf, np.inf, 2.0**64])),
    ("double", "[1, 2.5, 1e300, 18446744073709551616]", np.float64([1, 2.5, 1e300, 2.0**64])),
    ("int32", "[2147483647, -2147483648, -0]", np.int32([2**31 - 1, -(2**31), 0])),
    ("int16", "[40000, -40000]", np.int16([-25536, 25536])),
    ("int8", "[300, -129]", np.int8([44, 127])),
    ("uint8", "[300, -1]", np.uint8([44, 255])),
    ("int64", "[9223372036854775807, -9223372036854775808]", np.int64([2**63 - 1, -(2**63)])),
    ("uint32", "[0, 4294967295]", np.uint32([0, 2**32 - 1])),
    ("uint64", "[0, 18446744073709551615]", np.uint64([0, 2**64 - 1])),
    ("bool", "[true, false]", np.array([True, False])),
    ("float", "3", np.float32(3)),
    ("float", "[]", np.zeros([0], np.float32)),
    ("float", "[[], []]", np.zeros([2, 0], np.float32)),
    ("half", "[]", np.zeros([0], np.float16)),
    ("string", '["a\\u0000", "\\ud83d\\ude00", ""]', np.array([b"a\0", "\U0001f600".encode(), b""], object)),
    ("string", '{"b64": "YQ=="}', np.array(b"a", object)),
    ("string", '[{"b64": "YQ=="}, "b64", {"b64": ""}]', np.array([b"a", b"b64", b""], object)),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "text", "expected"), VALUES)
def test_a_column_is_the_array_that_it_shows(dtype, text, expected):
    found = column(text, dtype)
    assert (found.dtype, found.shape) == (expected.dtype, np.shape(expected))
    np.testing.assert_array_equal(found, expected)


REFUSALS = [
    ("float", '"1"', 'JSON Value: "1" Type: String is not of expected type: float'),
    ("float", "[null]", "JSON Value: null Type: Null is not of expected type: float"),
    ("float", "[true]", "JSON Value: true Type: True is not of expected type: float"),
    ("double", "false", "JSON Value: false Type: False is not of expected type: double"),
    ("float", '[{"b64": "YQ=="}]',
     'JSON Value: {\n    "b64": "YQ=="\n} Type: Object is not of expected type: float'),
    ("int32", "1.0", "JSON Value: 1.0 Type: Number is not of expected type: int32"),
    ("int32", "[2147483648]", "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
    ("uint8", "[1, -2147483649]", "JSON Value: -2147483649 Type: Number is not of expected type: uint8"),
    ("int32", "[Infinity]", "JSON Value:  Type: Number is not of expected type: int32"),
    ("int64", "9223372036854775808", "JSON Value: 9223372036854775808 Type: Number is not of expected type: int64"),
    ("int64", "[1e2]", "JSON Value: 100.0 Type: Number is not of expected type: int64"),
    ("uint32", "[-1]", "JSON Value: -1 Type: Number is not of expected type: uint32"),
    ("uint32", "[4294967296]", "JSON Value: 4294967296 Type: Number is not of expected type: uint32"),
    ("uint64", "[-1]", "JSON Value: -1 Type: Number is not of expected type: uint64"),
    ("bool", "[1]", "JSON Value: 1 Type: Number is not of expected type: bool"),
    ("string", "[1]", "JSON Value: 1 Type: Number is not of expected type: string"),
    ("string", "[true]", "JSON Value: true Type: True is not of expected type: string"),
    ("string", "null", "JSON Value: null Type: Null is not of expected type: string"),
    ("string", '[{"b64": "YQ==", "x": 1}]',
     'JSON Value: {\n    "b64": "YQ==",\n    "x": 1\n} not formatted correctly for base64 data'),
    ("string", '[{"b64": 1}]', 'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 data'),
    ("string", '["a", {}]', "JSON Value: {} not formatted correctly for base64 data"),
    ("string", '[{"b64": "Y"}]', "Unable to base64 decode"),
    ("half", '[{"x": 1}]', 'JSON Value: {\n    "x": 1\n} Type: Object is not of expected type: half'),
    ("float", "[[1, 2], [3]]", "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ("float", "[[1], 2]", "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ("float", "[1, [2]]", "Encountered list at unexpected level: 1 expected < 1"),
    ("float", "[[[1]], [[2, 3]]]", "Encountered list at unexpected size: 2 at level: 2 expected size: 1"),
    ("float", '[["a"], [1, 2]]', 'JSON Value: "a" Type: String is not of expected type: float'),
    ("float", "[[1, 2], [3], [null, 4]]", "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "text", "message"), REFUSALS)
def test_a_column_is_refused_for_the_first_value_that_does_not_fit(dtype, text, message):
    assert refusal(column, text, dtype) == ("INVALID_ARGUMENT", message)


@pytest.mark.parametrize("dtype", ["half", "bfloat16", "complex64", "uint16", "qint8", "resource"])
def test_a_value_of_another_type_is_unimplemented_in_a_column_and_invalid_in_a_row(dtype):
    message = f"Conversion of JSON Value: [1.5] to type: {dtype}".replace("[1.5]", "1.5")
    assert refusal(column, "[1.5]", dtype) == ("UNIMPLEMENTED", message)
    types = {"x": tf.dtypes.as_dtype(dtype).as_datatype_enum}
    assert refusal(read_rows, [1.5], types) == (
        "INVALID_ARGUMENT",
        f"Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: {message}",
    )


BASE64 = [
    ("YWI=", b"ab"),
    ("YWI", b"ab"),
    ("YWI.", b"ab"),
    ("YQ", b"a"),
    ("YQ==", b"a"),
    ("YQ.=", b"a"),
    (" Y\nQ = =\t", b"a"),
    ("YQ=", None),
    ("YWI==", None),
    ("YWJj=", None),
    ("Y", None),
    ("YQ==YQ==", None),
    ("=YQ=", None),
    ("Y-_=", None),
    ("YQ\u00a0==", None),
    ("YQ\x1c==", None),
    ("//+/", b"\xff\xff\xbf"),
]


@pytest.mark.parametrize(("text", "expected"), BASE64)
def test_base64_may_lack_its_padding_pad_with_dots_and_contain_white_space(text, expected):
    value = {"b64": text}
    if expected is None:
        assert refusal(read_columns, value, {"x": 7}) == ("INVALID_ARGUMENT", "Unable to base64 decode")
    else:
        assert read_columns(value, {"x": 7})["x"].item() == expected


TWO = {"a": 1, "b": 3}
ROWS = [
    ("rows_of_another_shape", "[[1, 2], [[3, 4]]]", {"x": 1},
     "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting shape [2] but got: [1,2]"),
    ("rows_of_another_size", '[{"a": [1, 2], "b": 1}, {"a": [1], "b": 1}]', TWO,
     "Failed to process element: 1 key: a of 'instances' list. Error: INVALID_ARGUMENT: "
     "Expecting tensor size: 2 but got: 1"),
    ("a_scalar_after_a_list", "[[1], 2]", {"x": 1},
     "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting shape [1] but got: []"),
    ("ragged_inside_a_row", "[[[1, 2], [3]]]", {"x": 1},
     "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
     "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ("a_list_among_objects", '[{"a": 1, "b": 2}, [1]]', TWO, "Expecting object but got list at item 1 of input list"),
    ("base64_among_objects", '[{"s": "a"}, {"b64": "YQ=="}]', {"s": 7},
     "Expecting object but got list at item 1 of input list"),
    ("an_object_among_values", '["a", {"s": "a"}]', {"s": 7},
     "Expecting value/list but got object at item 1 of input list"),
    ("an_object_among_numbers", '[1, {"x": 1}]', {"x": 1},
     "Expecting value/list but got object at item 1 of input list"),
    ("an_input_too_many", '[{"a": 1, "b": 2, "c": 3}]', TWO,
     "Failed to process element: 0 key: c of 'instances' list. Error: INVALID_ARGUMENT: "
     "JSON object: does not have named input: c"),
    ("an_input_missing", '[{"a": 1}]', TWO,
     "Failed to process element: 0 of 'instances' list. JSON object: {\n    \"a\": 1\n} keys must be equal to: a,b"),
    ("an_empty_object", "[{}]", TWO,
     "Failed to process element: 0 of 'instances' list. JSON object: {} keys must be equal to: a,b"),
    ("a_wrong_type", '[{"a": 1, "b": 2.5}]', TWO,
     "Failed to process element: 0 key: b of 'instances' list. Error: INVALID_ARGUMENT: "
     "JSON Value: 2.5 Type: Number is not of expected type: int32"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "types", "message"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_rows_are_refused_for_the_first_element_that_does_not_go_with_the_others(text, types, message):
    assert refusal(read_rows, parse(text.encode()), types) == ("INVALID_ARGUMENT", message)


def test_an_input_may_be_called_b64():
    assert read_rows([{"b64": 1}, {"b64": 2}], {"b64": 1})["b64"].tolist() == [1, 2]
    assert read_rows([{"b64": "YQ=="}, "b"], {"b64": 7})["b64"].tolist() == [b"a", b"b"]
    mixed = [{"b64": {"b64": "YQ=="}}, {"b64": "YQ=="}]
    assert refusal(read_rows, mixed, {"b64": 7})[1] == "Expecting object but got list at item 1 of input list"


def test_a_base64_object_in_a_row_goes_to_the_first_of_several_inputs():
    found = read_rows([{"b64": "YQ=="}], {"s": 7, "t": 7})
    assert {name: array.tolist() for name, array in found.items()} == {"s": [b"a"]}


@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=2), min_size=1), st.booleans())
@settings(max_examples=50, deadline=None)
def test_rows_are_the_columns_cut_in_pieces(values, named):
    rows = [{"x": value} for value in values] if named else values
    found = read_rows(parse(json.dumps(rows).encode()), {"x": 3})["x"]
    np.testing.assert_array_equal(found, read_columns(values, {"x": 3})["x"])
    np.testing.assert_array_equal(found, np.array(values, np.int32))
