"""Numbers, strings and values as TF Serving prints them; the layouts are those of rapidjson 1.1.0's writer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.server.errors import RequestError
from serving.server.json_format import classes, columns, decimals, quoted, regressions, rows, shown

FLOATS = [
    (0.1, b"0.1"),
    (1 / 3, b"0.333333343"),
    (1.0, b"1.0"),
    (-0.0, b"-0.0"),
    (9e6, b"9e+06"),
    (3e-5, b"3e-05"),
    (123456.7, b"123456.703"),
    (16777216.0, b"16777216.0"),
    (np.nan, b"NaN"),
    (np.inf, b"Infinity"),
    (-np.inf, b"-Infinity"),
]


@pytest.mark.parametrize(("value", "text"), FLOATS)
def test_a_float_is_the_shorter_of_6_and_9_digits_that_reads_back(value, text):
    assert decimals(np.float32([value])) == [text]


def test_a_double_that_needs_them_has_17_digits():
    assert decimals(np.array([0.1, 1 / 3])) == [b"0.1", b"0.33333333333333331"]


@given(st.lists(st.floats(width=32)))
@settings(deadline=None)
def test_every_float32_reads_back_as_itself(values):
    array = np.array(values, np.float32)
    np.testing.assert_array_equal(np.array([float(text) for text in decimals(array)], np.float32), array)


@pytest.mark.filterwarnings("error")
def test_many_floats_are_printed_as_few_are():
    random = np.random.default_rng(0)
    edges = np.float32(
        [0, -0.0, np.nan, np.inf, -np.inf, 1e-4, 1e6, 999999.94, 9.9999e-5, 1e9, 3.4e38, 1e-45, 0.1, 1e5]
    )
    near = np.nextafter(edges[~np.isnan(edges)], np.float32(0))
    bits = random.integers(0, 2**32, 3000, np.uint32).view(np.float32)
    short = np.round(10 ** random.uniform(-5, 7, 3000), 3).astype(np.float32) * random.choice(np.float32([-1, 1]), 3000)
    array = np.concatenate([edges, near, bits, short, random.random(3000, np.float32)])
    assert decimals(array) == [text for value in array for text in decimals(value[None])]


def test_strings_escape_quotes_and_controls_and_keep_other_bytes():
    assert quoted(b'\xff"\\\n\x1f/') == b'"\xff\\"\\\\\\n\\u001F/"'
    assert quoted("é") == '"é"'.encode()


TABLE = np.array([[1, 2], [3, 4]], np.int32)
BYTES = np.array([b"a", b"b"], dtype=object)
LAYOUTS = [
    ("plain_rows", rows, {"x": TABLE}, '{\n    "predictions": [[1, 2], [3, 4]\n    ]\n}'),
    ("no_rows", rows, {"x": TABLE[:0], "y": TABLE[:0]}, '{\n    "predictions": []\n}'),
    ("rows_of_no_values", rows, {"x": TABLE[:, :0]}, '{\n    "predictions": [[], []\n    ]\n}'),
    ("named_rows", rows, {"a": TABLE[0], "b%": TABLE},
     '{\n    "predictions": [\n        {\n            "a": 1,\n            "b%": [1, 2]\n        },\n'
     '        {\n            "a": 2,\n            "b%": [3, 4]\n        }\n    ]\n}'),
    ("bytes_rows", rows, {"x_bytes": BYTES},
     '{\n    "predictions": [{\n            "b64": "YQ=="\n        }, {\n            "b64": "Yg=="\n        }\n'
     "    ]\n}"),
    ("named_bytes_rows", rows, {"a": TABLE[0, :1], "d_bytes": BYTES[None]},
     '{\n    "predictions": [\n        {\n            "a": 1,\n            "d_bytes": [{\n'
     '                    "b64": "YQ=="\n'
     '                }, {\n                    "b64": "Yg=="\n                }]\n        }\n    ]\n}'),
    ("a_scalar_column", columns, {"x": TABLE[0, 0]}, '{\n    "outputs": 1\n}'),
    ("a_column", columns, {"x": TABLE},
     '{\n    "outputs": [\n        [\n            1,\n            2\n        ],\n'
     '        [\n            3,\n            4\n        ]\n    ]\n}'),
    ("an_empty_column", columns, {"x": TABLE[:0]}, '{\n    "outputs": []\n}'),
    ("named_columns", columns, {"a": TABLE[0, 0], "b": TABLE[0]},
     '{\n    "outputs": {\n        "a": 1,\n        "b": [\n            1,\n            2\n        ]\n    }\n}'),
    ("a_bytes_column", columns, {"x_bytes": BYTES},
     '{\n    "outputs": [\n        {\n            "b64": "YQ=="\n        },\n        {\n            "b64": "Yg=="\n'
     "        }\n    ]\n}"),
    ("one_bytes_value", columns, {"x_bytes": np.array(b"a", dtype=object)},
     '{\n    "outputs": {\n        "b64": "YQ=="\n    }\n}'),
]  # fmt: skip


@pytest.mark.parametrize(("write", "outputs", "text"), [r[1:] for r in LAYOUTS], ids=[r[0] for r in LAYOUTS])
def test_lists_stand_on_one_line_in_rows_and_on_many_in_columns_and_objects_always_on_many(write, outputs, text):
    assert write(outputs).decode() == text


def test_results_of_classify_and_regress_stand_on_one_line():
    labels = np.array([[b"a", b'"'], [b"a", b'"']], dtype=object)
    assert classes(labels, np.float32([[0.5, 1], [2, 3]])) == (
        b'{\n    "results": [[["a", 0.5], ["\\"", 1.0]], [["a", 2.0], ["\\"", 3.0]]\n    ]\n}'
    )
    assert classes(labels[:, :0], np.zeros([2, 0], np.float32)) == b'{\n    "results": [[], []\n    ]\n}'
    assert regressions(np.float32([0.5, 1])) == b'{\n    "results": [0.5, 1.0]\n}'


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([True, False]), b"true, false"),
        (np.int8([-128, 127]), b"-128, 127"),
        (np.uint8([0, 255]), b"0, 255"),
        (np.int16([-1]), b"-1"),
        (np.uint32([2**32 - 1]), b"4294967295"),
        (np.int64([-(2**63)]), b"-9223372036854775808"),
        (np.uint64([2**64 - 1]), b"18446744073709551615"),
        (np.float64([0.1, 1e300, 1 / 3]), b"0.1, 1e+300, 0.33333333333333331"),
        (np.array([b"\xff", "\u00e9"], dtype=object), b'"\xff", "\xc3\xa9"'),
        (np.array([b'a"', b"b\n"], dtype=object), b'"a\\"", "b\\n"'),
    ],
)
def test_every_type_that_has_a_json_form(array, text):
    assert rows({"x": array}) == b'{\n    "predictions": [' + text + b"\n    ]\n}"


@pytest.mark.parametrize("kind", ["float16", "uint16", "complex64"])
def test_other_types_have_no_json_form(kind):
    name = {"float16": "half"}.get(kind, kind)
    with pytest.raises(RequestError, match=f"Failed to write JSON value for tensor type: {name}"):
        rows({"x": np.zeros(2, kind)})


def test_outputs_with_different_first_dimensions_make_no_rows():
    with pytest.raises(RequestError, match="Tensor name: q has inconsistent batch size: 3 expecting: 2"):
        rows({"p": np.zeros(2), "q": np.zeros(3)})


SHOWN = [
    ({"a": [1, [], {}], "b": {"c": None}}, '{\n    "a": [1, [], {}],\n    "b": {\n        "c": null\n    }\n}'),
    ([[{"a": True}], False], '[[{\n            "a": true\n        }], false]'),
    (0.1, "0.1"),
    (1.0, "1.0"),
    (-0.0, "-0.0"),
    (1e21, "1e21"),
    (1e20, "100000000000000000000.0"),
    (123456.75, "123456.75"),
    (1.5e-7, "1.5e-7"),
    (1.5e-6, "0.0000015"),
    (5e-324, "5e-324"),
    (2**64 - 1, "18446744073709551615"),
    ([1, math.nan, 2], "[1, "),
    ({"a": -math.inf}, '{\n    "a": '),
    ("x" * 300, '"' + "x" * 300 + '"'),
    (["x" * 254, 1, 2], '["' + "x" * 254 + '"'),
    (["x" * 252, 1, 2], '["' + "x" * 252 + '", 1'),
]


@pytest.mark.parametrize(("value", "text"), SHOWN)
def test_a_value_in_an_error_is_indented_and_ends_with_the_token_that_reaches_256_bytes(value, text):
    assert shown(value) == text


def test_a_long_or_deep_value_costs_no_more_than_what_is_shown_of_it():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert shown({"deep": deep}) == '{\n    "deep": ' + "[" * 242
    assert shown(list(range(10**6))).endswith("65, 66")
    while deep:
        deep = deep.pop()
