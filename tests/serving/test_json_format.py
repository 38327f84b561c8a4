"""Numbers, strings and values as TF Serving prints them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.server.errors import RequestError
from serving.server.json_format import columns, decimals, quoted, rows, shown

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


def test_strings_escape_quotes_and_controls_and_keep_other_bytes():
    assert quoted(b'\xff"\\\n\x1f/') == b'"\xff\\"\\\\\\n\\u001F/"'
    assert quoted("é") == '"é"'.encode()


def test_inner_lists_are_on_one_line_and_bytes_outputs_are_base64():
    table = np.array([[b"a", b"b"]], dtype=object)
    assert columns({"t": table, "t_bytes": table}) == (
        b'{\n    "outputs": {\n        "t": [["a", "b"]],\n'
        b'        "t_bytes": [[{"b64": "YQ=="}, {"b64": "Yg=="}]]\n    }\n}'
    )


def test_empty_dimensions_keep_their_brackets():
    assert columns({"x": np.zeros([2, 0], np.float32)}) == b'{\n    "outputs": [[], []]\n}'


def test_outputs_with_different_first_dimensions_make_no_rows():
    with pytest.raises(RequestError, match="Tensor name: q has inconsistent batch size: 3 expecting: 2"):
        rows({"p": np.zeros(2), "q": np.zeros(3)})


def test_a_half_output_is_refused():
    with pytest.raises(RequestError, match="Failed to write JSON value for tensor type: half"):
        rows({"x": np.zeros(2, np.float16)})


def test_a_long_or_deep_value_is_shown_only_in_its_first_256_bytes():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert len(shown({"deep": deep})) == 256
    assert len(shown(list(range(10**6)))) == 256
    while deep:
        deep = deep.pop()
