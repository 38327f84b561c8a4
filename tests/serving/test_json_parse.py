"""The JSON reader against Python's on common ground, and against rapidjson's rules elsewhere."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.server.errors import RequestError
from serving.server.json_parse import _Parser, parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)  # fmt: skip


@given(JSON, st.booleans(), st.sampled_from([None, 1]))
@settings(max_examples=80, deadline=None)
def test_both_readers_agree_with_pythons_on_plain_json(value, escaped, indent):
    text = json.dumps(value, ensure_ascii=escaped, indent=indent).encode()
    assert parse(text) == json.loads(text)
    assert _Parser(text).document() == json.loads(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"[NaN]", [math.nan]),
        (b"[Inf, -Inf, Infinity, -Infinity]", [math.inf, -math.inf, math.inf, -math.inf]),
        (b'{"a": 1, "a": 2}', {"a": 1}),
        (b'{"a": {"b": 1, "b": 2}, "c": ":"}', {"a": {"b": 1}, "c": ":"}),
        (b"[1] rest", [1]),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b"[18446744073709551615, -9223372036854775808]", [2**64 - 1, -(2**63)]),
        (b"[18446744073709551616]", [2.0**64]),
        (b'"\\ud83d\\ude00\\n\xff"', "\U0001f600\n\udcff"),
        (b'"\\udc00"', "\udced\udcb0\udc80"),  # half a pair: the bytes that rapidjson makes of it
        (b"[2e308, -1.8e308, 1e-400]", [math.inf, -math.inf, 0.0]),
        (b"[-0, -0.0, 1E2, 1e+2]", [0, -0.0, 100.0, 100.0]),
        (b"[-9223372036854775809]", [-(2.0**63)]),
        (b"[1]\0[", [1]),
        (b'\xbb{"a": 1}', {"a": 1}),
        (b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2, "a": 3}]}', {"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}),
        (b'{"a": [1, {"b": 1, "b": 2}]}', {"a": [1, {"b": 1}]}),
        (b'{"a": ["x", {"b": 1, "b": 2}]}', {"a": ["x", {"b": 1}]}),
        (b'{"a" :1, "a": "\\":"}', {"a": 1}),
    ],
)
def test_what_python_and_orjson_refuse_is_read(text, value):
    assert repr(parse(text)) == repr(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "The document is empty"),
        (b" \n", "The document is empty. at offset: 2"),
        (b"]", "The document is empty. at offset: 0"),
        (b"// no", "Invalid value. at offset: 0"),
        (b'{"a": 1,}', "Missing a name for object member. at offset: 8"),
        (b"{'a': 1}", "Missing a name for object member. at offset: 1"),
        (b'{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
        (b'{"a": 1', "Missing a comma or '}' after an object member. at offset: 7"),
        (b"[01]", "Missing a comma or ']' after an array element. at offset: 2"),
        (b"[1,]", "Invalid value. at offset: 3"),
        (b"[nul]", "Invalid value. at offset: 4"),
        (b"[-]", "Invalid value. at offset: 2"),
        (b"[1.]", "Miss fraction part in number. at offset: 3"),
        (b"[1e+]", "Miss exponent in number. at offset: 4"),
        (b"[1e400]", "Number too big to be stored in double. at offset: 1"),
        (b'["a', "Missing a closing quotation mark in string. at offset: 3"),
        (b'["\\x"]', "Invalid escape character in string. at offset: 2"),
        (b'["\\u12"]', "Incorrect hex digit after \\u escape in string. at offset: 2"),
        (b'["\\ud800"]', "The surrogate pair in string is invalid. at offset: 2"),
        (b'["\n"]', "Invalid escape character in string. at offset: 2"),
        (b'["a\x1fb"]', "Invalid escape character in string. at offset: 3"),
        (b'["\\ud83d\\n"]', "The surrogate pair in string is invalid. at offset: 2"),
        (b'["\\ud83d\\ue000"]', "The surrogate pair in string is invalid. at offset: 2"),
        (b'["\\ud83d\\u00"]', "Incorrect hex digit after \\u escape in string. at offset: 2"),
        (b"{", "Missing a name for object member. at offset: 1"),
        (b'{"a":', "Invalid value. at offset: 5"),
        (b'{"a":}', "Invalid value. at offset: 5"),
        (b"[", "Invalid value. at offset: 1"),
        (b"[1", "Missing a comma or ']' after an array element. at offset: 2"),
        (b"[1 2]", "Missing a comma or ']' after an array element. at offset: 3"),
        (b"[1}", "Missing a comma or ']' after an array element. at offset: 2"),
        (b"[,1]", "Invalid value. at offset: 1"),
        (b"[Infi]", "Invalid value. at offset: 5"),
        (b"[-Na]", "Invalid value. at offset: 4"),
        (b"[+1]", "Invalid value. at offset: 1"),
        (b"[.5]", "Invalid value. at offset: 1"),
        (b"[tru]", "Invalid value. at offset: 4"),
        (b"[1e]", "Miss exponent in number. at offset: 3"),
        (b"[-1e309]", "Number too big to be stored in double. at offset: 1"),
        (b"[0.1e310]", "Number too big to be stored in double. at offset: 1"),
        (b"[2" + b"0" * 308 + b"]", "Number too big to be stored in double. at offset: 1"),
        (b"[1, \0]", "Invalid value. at offset: 4"),
        (b'["\0"]', "Missing a closing quotation mark in string. at offset: 2"),
        (b"\xef\xbb\xbf[1,]", "Invalid value. at offset: 6"),
    ],
)
def test_an_error_has_rapidjsons_words_and_offset(text, message):
    with pytest.raises(RequestError) as raised:
        parse(text)
    assert raised.value.message == f"JSON Parse error: {message}"
    assert raised.value.code.name == "INVALID_ARGUMENT"


def test_depth_has_no_limit():
    value = parse(b'{"a": ' + b"[" * 500_000 + b"]" * 500_000 + b"}")["a"]
    depth = 0
    while value:
        (value,) = value
        depth += 1
    assert depth == 499_999


def test_a_colon_inside_a_text_does_not_make_reading_slow(monkeypatch):
    monkeypatch.setattr("serving.server.json_parse._Parser", None)
    body = {"instances": [{"text": "http://a: b", "b": [[{"c": "a:"}]]}] * 3}
    assert parse(json.dumps(body).encode()) == body
