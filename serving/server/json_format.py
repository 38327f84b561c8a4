"""Values and tensors as the JSON text that TF Serving writes: its floats, its strings, its indentation.

Everything is bytes: a string output need not be UTF-8, and goes out as it is.
"""

import contextlib
import math
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from ctypes import c_float
from decimal import Decimal
from typing import Any

import numpy as np
import orjson

from serving.server.errors import invalid
from serving.tensors import as_bytes, type_of

_SHOWN_BYTES = 256  # of a request's JSON inside an error message; the token that crosses it is whole
_BYTES_SUFFIX = "_bytes"
_MANY = 20  # numbers from which on arrays pay
_LOW, _HIGH = 1e-4, 1e6  # between them neither %g nor %.9g writes an exponent
_DECADES = 10.0 ** np.arange(-4, 6)
_SIX, _NINE = 10.0 ** np.arange(9, -1, -1), 10.0 ** np.arange(12, 2, -1)  # 6 and 9 digits to whole numbers, by decade
_SPECIAL = re.compile(rb'["\\\x00-\x1f]')
_ESCAPES = {b'"': b'\\"', b"\\": b"\\\\", b"\b": b"\\b", b"\f": b"\\f", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}


def quoted(text: str | bytes) -> bytes:
    """A JSON string."""
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return b'"' + _SPECIAL.sub(lambda m: _ESCAPES.get(m.group()) or b"\\u%04X" % m.group()[0], raw) + b'"'


def error_body(message: str) -> bytes:
    return b'{\n    "error": ' + quoted(message) + b"\n}"


def rows(outputs: Mapping[str, np.ndarray]) -> bytes:
    """{"predictions": [..]}: plain values for one output, else one object a row. Raises RequestError."""
    _check_some(outputs)
    expected = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if expected is None:
            expected = len(array)
        elif len(array) != expected:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {expected}")
    depth = 2 if len(outputs) == 1 else 3
    columns = [_elements(name, array, 1, depth, False) for name, array in outputs.items()]
    if not columns[0]:
        return b'{\n    "predictions": []\n}'
    if len(columns) == 1:
        return b'{\n    "predictions": [' + b", ".join(columns[0]) + b"\n    ]\n}"
    members = (b"            " + quoted(name).replace(b"%", b"%%") + b": %b" for name in outputs)
    row = b"        {\n" + b",\n".join(members) + b"\n        }"
    objects = [row % values for values in zip(*columns, strict=True)]
    return b'{\n    "predictions": [\n' + b",\n".join(objects) + b"\n    ]\n}"


def columns(outputs: Mapping[str, np.ndarray]) -> bytes:
    """{"outputs": value} for one output, {"outputs": {name: value}} for several. Raises RequestError."""
    _check_some(outputs)
    depth = 1 if len(outputs) == 1 else 2
    values = {name: _elements(name, array, 0, depth, True)[0] for name, array in outputs.items()}
    if len(values) == 1:
        (value,) = values.values()
        return b'{\n    "outputs": ' + value + b"\n}"
    members = (b"        " + quoted(name) + b": " + value for name, value in values.items())
    return b'{\n    "outputs": {\n' + b",\n".join(members) + b"\n    }\n}"


def _check_some(outputs: Mapping[str, np.ndarray]) -> None:
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")


def classes(labels: np.ndarray, scores: np.ndarray) -> bytes:  # [n, k] of bytes, [n, k]
    """{"results": [[[label, score], ..] an example]}."""
    numbers = decimals(scores.ravel())
    pairs = [b"[%b, %b]" % (quoted(label), n) for label, n in zip(labels.ravel().tolist(), numbers, strict=True)]
    size = labels.shape[1]
    examples = [b"[" + b", ".join(pairs[i * size : (i + 1) * size]) + b"]" for i in range(len(labels))]
    return b'{\n    "results": [' + b", ".join(examples) + b"\n    ]\n}"


def regressions(values: np.ndarray) -> bytes:  # [n]
    """{"results": [value, ..]}."""
    return b'{\n    "results": [' + b", ".join(decimals(values)) + b"]\n}"


def decimals(array: np.ndarray) -> list[bytes]:  # [n] -> n texts
    """Each number of a flat float array: %g where that reads back as the same number, else all its digits."""
    return _many_decimals(array) if len(array) >= _MANY and array.dtype == np.float32 else _few_decimals(array)


def _few_decimals(array: np.ndarray) -> list[bytes]:
    single = array.dtype == np.float32
    texts = []
    for value in array.tolist():
        text = b"%g" % value
        back = float(text)
        if (c_float(back).value if single else back) != value:
            text = (b"%.9g" if single else b"%.17g") % value
        texts.append(text if b"." in text else _decimal(text))
    return texts


def _many_decimals(array: np.ndarray) -> list[bytes]:
    """The same for float32, most of them at once: those that neither form writes with an exponent.

    Exact: a float32 times such a power of ten fits a double, and the quotient of whole numbers is the double nearest to
    the wanted decimal, which is the one that orjson then writes.
    """
    size = np.abs(array)
    plain = (size >= _LOW) & (size < _HIGH) | (size == 0)
    values = np.where(plain, array, 0).astype(np.float64)
    decade = np.maximum(np.searchsorted(_DECADES, np.abs(values), "right") - 1, 0)
    six, nine = (np.rint(values * scale[decade]) / scale[decade] for scale in (_SIX, _NINE))
    rounded = np.where(six.astype(np.float32) == array, six, nine)
    texts = orjson.dumps(rounded, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    rest = np.nonzero(~plain)[0]
    for i, text in zip(rest.tolist(), _few_decimals(array[rest]), strict=True):
        texts[i] = text
    return texts


def _decimal(text: bytes) -> bytes:
    if b"." in text or b"e" in text:
        return text
    if text[-1:].isdigit():
        return text + b".0"
    return {b"nan": b"NaN", b"inf": b"Infinity", b"-inf": b"-Infinity"}[text.replace(b"-nan", b"nan")]


def _elements(name: str, array: np.ndarray, first: int, depth: int, indented: bool) -> list[bytes]:
    """The texts of the values below the dimension `first` (0 or 1), `depth` containers deep.

    Lists are on one line, or `indented`: a line an element. An object always has a line a member.
    """
    try:
        kind = type_of(array).name
    except ValueError:
        kind = str(array.dtype)
    if array.size and kind not in _WRITERS:
        raise invalid(f"Failed to write JSON value for tensor type: {kind}")
    if kind == "string" and name.endswith(_BYTES_SUFFIX):
        texts = _base64(array, depth + array.ndim - first)
    else:
        texts = _WRITERS[kind](array.ravel()) if array.size else []
    for axis in range(array.ndim - 1, first - 1, -1):
        size = array.shape[axis]
        outer = math.prod(array.shape[:axis])
        level = depth + axis - first
        opening, comma, closing = b"[", b", ", b"]"
        if indented:
            opening, comma, closing = b"[" + _line(level + 1), b"," + _line(level + 1), _line(level) + b"]"
        if size:
            texts = [opening + comma.join(texts[i * size : (i + 1) * size]) + closing for i in range(outer)]
        else:
            texts = [b"[]"] * outer
    return texts


def _line(level: int) -> bytes:
    return b"\n" + b"    " * level


def _integers(array: np.ndarray) -> list[bytes]:
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")


def _strings(array: np.ndarray) -> list[bytes]:
    values = as_bytes(array)
    if _SPECIAL.search(b"".join(values)):
        return [quoted(value) for value in values]
    return [b'"' + value + b'"' for value in values]


def _base64(array: np.ndarray, level: int) -> list[bytes]:
    before, after = b"{" + _line(level + 1) + b'"b64": "', b'"' + _line(level) + b"}"
    return [before + b64encode(value) + after for value in as_bytes(array)]


_WRITERS: dict[str, Callable[[np.ndarray], list[bytes]]] = {
    "float": decimals,
    "double": decimals,
    **dict.fromkeys(["int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "bool"], _integers),
    "string": _strings,
}


class _Enough(Exception):
    """An error message shows no more of a value."""


def shown(value: Any) -> str:
    """A parsed JSON value for an error message: indented, no further token once 256 bytes are out.

    Stops at a number that is not finite, as TF Serving's writer does.
    """
    text = bytearray()
    with contextlib.suppress(_Enough):
        _show(value, text, b"\n", b"")
    return text.decode("utf-8", "surrogateescape")


def _show(value: Any, text: bytearray, newline: bytes, before: bytes) -> None:
    inner = newline + b"    "
    if isinstance(value, dict):
        _put(text, before + b"{")
        for i, (key, member) in enumerate(value.items()):
            _put(text, (b"," if i else b"") + inner + quoted(key))
            _show(member, text, inner, b": ")
        _put(text, newline + b"}" if value else b"}")
    elif isinstance(value, list):
        _put(text, before + b"[")
        for i, member in enumerate(value):
            _show(member, text, inner, b", " if i else b"")
        _put(text, b"]")
    elif isinstance(value, float) and not math.isfinite(value):
        _put(text, before)
        raise _Enough
    else:
        _put(text, before + _scalar(value))


def _put(text: bytearray, token: bytes) -> None:
    if len(text) >= _SHOWN_BYTES:
        raise _Enough
    text += token


def _scalar(value: Any) -> bytes:
    if isinstance(value, bool) or value is None:
        return {True: b"true", False: b"false", None: b"null"}[value]
    if isinstance(value, float):
        return _shortest(value)
    return quoted(value) if isinstance(value, str) else b"%d" % value


def _shortest(value: float) -> bytes:
    """The digits that read back, with an exponent only beyond 1e21 and below 1e-6."""
    sign, figures, power = Decimal(repr(value)).normalize().as_tuple()
    digits = "".join(map(str, figures))
    point = len(digits) + int(power)
    if value == 0:
        text = "0.0"
    elif 0 < point <= 21:
        text = digits[:point].ljust(point, "0") + "." + (digits[point:] or "0")
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        text = digits[0] + ("." + digits[1:] if len(digits) > 1 else "") + f"e{point - 1}"
    return b"-" * sign + text.encode()
