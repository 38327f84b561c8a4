"""Values and tensors as the JSON text that TF Serving writes: its floats, its strings, its indentation.

Everything is bytes: a string output need not be UTF-8, and goes out as it is.
"""

import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from serving.server.errors import invalid
from serving.tensors import as_bytes, type_of

_SHOWN_BYTES = 256  # of a request's JSON inside an error message
_BYTES_SUFFIX = "_bytes"
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
    sizes: dict[str, int] = {}
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        sizes[name] = len(array)
        expected = next(iter(sizes.values()))
        if len(array) != expected:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {expected}")
    columns = {name: _elements(name, array, 1) for name, array in outputs.items()}
    if len(columns) == 1:
        (column,) = columns.values()
        return b'{\n    "predictions": [' + b", ".join(column) + b"\n    ]\n}"
    keys = [b"            " + quoted(name) + b": " for name in columns]
    objects = (
        b"        {\n" + b",\n".join(key + value for key, value in zip(keys, row, strict=True)) + b"\n        }"
        for row in zip(*columns.values(), strict=True)
    )
    return b'{\n    "predictions": [\n' + b",\n".join(objects) + b"\n    ]\n}"


def columns(outputs: Mapping[str, np.ndarray]) -> bytes:
    """{"outputs": value} for one output, {"outputs": {name: value}} for several. Raises RequestError."""
    values = {name: _elements(name, array, 0)[0] for name, array in outputs.items()}
    if len(values) == 1:
        (value,) = values.values()
        return b'{\n    "outputs": ' + value + b"\n}"
    members = (b"        " + quoted(name) + b": " + value for name, value in values.items())
    return b'{\n    "outputs": {\n' + b",\n".join(members) + b"\n    }\n}"


def decimals(array: np.ndarray) -> list[bytes]:  # [n] -> n texts
    """Each number of a flat float array: %g where that reads back as the same number, else all its digits."""
    full = b"%.9g" if array.dtype == np.float32 else b"%.17g"
    values = array.tolist()
    texts = [b"%g" % value for value in values]
    with np.errstate(over="ignore"):
        read_back = np.array([float(text) for text in texts], np.float64).astype(array.dtype)
    for i in np.nonzero(read_back != array)[0]:
        texts[i] = full % values[i]
    return [_decimal(text) for text in texts]


def _decimal(text: bytes) -> bytes:
    if b"." in text or b"e" in text:
        return text
    if text[-1:].isdigit():
        return text + b".0"
    return {b"nan": b"NaN", b"inf": b"Infinity", b"-inf": b"-Infinity"}[text.replace(b"-nan", b"nan")]


def _elements(name: str, array: np.ndarray, dimension: int) -> list[bytes]:
    """The values below the first `dimension` (0 or 1) dimensions, each as text with its inner lists on one line."""
    try:
        kind = type_of(array).name
    except ValueError:
        kind = str(array.dtype)
    if kind not in _WRITERS:
        raise invalid(f"Failed to write JSON value for tensor type: {kind}")
    writer = _base64 if kind == "string" and name.endswith(_BYTES_SUFFIX) else _WRITERS[kind]
    texts = writer(array.reshape(-1))
    for axis in range(array.ndim - 1, dimension - 1, -1):
        size = array.shape[axis]
        outer = math.prod(array.shape[:axis])
        texts = [b"[" + b", ".join(texts[i * size : (i + 1) * size]) + b"]" for i in range(outer)]
    return texts


def _integers(array: np.ndarray) -> list[bytes]:
    return [b"%d" % value for value in array.tolist()]


def _booleans(array: np.ndarray) -> list[bytes]:
    return [b"true" if value else b"false" for value in array.tolist()]


def _strings(array: np.ndarray) -> list[bytes]:
    return [quoted(value) for value in as_bytes(array)]


def _base64(array: np.ndarray) -> list[bytes]:
    return [b'{"b64": "' + b64encode(value) + b'"}' for value in as_bytes(array)]


_WRITERS: dict[str, Callable[[np.ndarray], list[bytes]]] = {
    "float": decimals,
    "double": decimals,
    **dict.fromkeys(["int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"], _integers),
    "bool": _booleans,
    "string": _strings,
}


def shown(value: Any) -> str:
    """A parsed JSON value for an error message, indented and cut."""
    text = b""
    for piece in _pieces(value, b"\n"):
        text += piece
        if len(text) > _SHOWN_BYTES:
            break
    return text[:_SHOWN_BYTES].decode("utf-8", "surrogateescape")


def _pieces(value: Any, newline: bytes) -> Iterator[bytes]:
    """Lazy, so that a long or deep value costs no more than what is shown of it."""
    inner = newline + b"    "
    if isinstance(value, dict) and value:
        yield from _listed(((quoted(k) + b": ", v) for k, v in value.items()), b"{", b"}", inner, newline)
    elif isinstance(value, list) and value:
        yield from _listed(((b"", v) for v in value), b"[", b"]", inner, newline)
    else:
        yield _scalar(value)


def _listed(
    members: Iterable[tuple[bytes, Any]], opening: bytes, closing: bytes, inner: bytes, newline: bytes
) -> Iterator[bytes]:
    separator = opening
    for key, member in members:
        yield separator + inner + key
        yield from _pieces(member, inner)
        separator = b","
    yield newline + closing


def _scalar(value: Any) -> bytes:
    if isinstance(value, bool) or value is None:
        return {True: b"true", False: b"false", None: b"null"}[value]
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, float):
        return decimals(np.array([value]))[0]
    if isinstance(value, str):
        return quoted(value)
    return b"{}" if isinstance(value, dict) else b"[]"
