"""The tensors in a JSON predict request, by rows ("instances") or by columns ("inputs").

A well-formed tensor is read level by level, each in one call; only what that refuses is walked value by value, in TF
Serving's order, to say what is wrong with it. Shapes are not compared with the signature: TF Serving does not either.
"""

import binascii
import contextlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from serving.server.errors import Code, RequestError, invalid
from serving.server.json_format import shown
from serving.tensors import BY_NUMBER, MAX_RANK, TensorType

_CARRIERS: dict[str, type[np.integer]] = {  # whose range a JSON integer has to keep
    **dict.fromkeys(["int8", "int16", "int32", "uint8"], np.int32),  # then wrapped, as TF Serving does
    "int64": np.int64,
    "uint32": np.uint32,
    "uint64": np.uint64,
}
_NOTHING: frozenset[type] = frozenset()
_ACCEPTED: dict[str, frozenset[type]] = {
    **dict.fromkeys(["float", "double"], frozenset({int, float})),
    **dict.fromkeys(_CARRIERS, frozenset({int})),
    "bool": frozenset({bool}),
    "string": frozenset({str, dict}),
}
_TEXTS = frozenset({str})
_BLOCK = 1000  # values or rows that are looked at together, when the wrong one is searched for
_SPACE = b" \t\n\v\f\r"
_UNPADDED = re.compile(rb"([A-Za-z0-9+/]*)([=.]*)")


class _Irregular(Exception):
    """Not a tensor of the wanted type: `_explain` says why."""


def read_rows(instances: list[Any], types: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Arrays [n, ...] by input name; `types` has the DataType number of each input. Raises RequestError."""
    first = instances[0]
    if not isinstance(first, dict) and len(types) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    try:
        return _regular_rows(instances, types)
    except _Irregular:
        raise _explain_rows(instances, types) from None


def _regular_rows(instances: list[Any], types: Mapping[str, int]) -> dict[str, np.ndarray]:
    if not _is_named(instances[0]):
        name = min(types)
        return {name: _dense(instances, types[name])}
    names = types.keys()
    for row in instances:
        if type(row) is not dict or row.keys() != names:
            raise _Irregular
    if "b64" in names and not all(map(_is_named, instances)):
        raise _Irregular
    return {name: _dense([row[name] for row in instances], types[name]) for name in names}


def read_columns(inputs: Any, types: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Arrays by input name, shaped as they are written. Raises RequestError."""
    if not _is_named(inputs):
        if len(types) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        inputs = {name: inputs for name in types}
    arrays = {}
    for name in sorted(types):
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        try:
            arrays[name] = _dense(inputs[name], types[name])
        except _Irregular:
            raise _explain(inputs[name], types[name]) or _unexplained(name) from None
    return arrays


def is_base64(value: dict[str, Any]) -> bool:
    return len(value) == 1 and isinstance(value.get("b64"), str)


def decoded(value: str | dict[str, Any]) -> bytes:
    """The bytes of a text or of a {"b64"} object. Raises ValueError for text that is no base64."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    encoded = value["b64"].encode("utf-8", "surrogateescape")
    if len(encoded) % 4 == 0:  # else Python passes over padding too much
        with contextlib.suppress(binascii.Error):
            return binascii.a2b_base64(encoded, strict_mode=True)
    return _decoded_freely(encoded)


def _decoded_freely(encoded: bytes) -> bytes:
    """White space anywhere, and no padding at all or the right one, of "=" or "."."""
    match = _UNPADDED.fullmatch(encoded.translate(None, _SPACE))
    digits, padding = match.groups() if match else (b"A", b"")
    missing = -len(digits) % 4
    if missing == 3 or len(padding) not in (0, missing):
        raise ValueError("not base64")
    return binascii.a2b_base64(digits + b"=" * missing)


def type_name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    names = {type(None): "Null", str: "String", dict: "Object", list: "Array"}
    return names.get(type(value), "Number")


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _dense(value: Any, number: int) -> np.ndarray:
    if not isinstance(value, list):
        return _array([value], number).reshape([])
    if not value or not isinstance(value[0], list):
        return _array(value, number)
    shape, level = [len(value)], value
    while level and isinstance(level[0], list):
        size = len(level[0])
        if _count(type, level, list) != len(level) or _count(len, level, size) != len(level):
            raise _Irregular
        shape.append(size)
        level = list(chain.from_iterable(level))
    if len(shape) > MAX_RANK:
        raise invalid(f"Encountered {len(shape)} nested lists; a tensor has {MAX_RANK} dimensions at most")
    return _array(level, number).reshape(shape)


def _count(function: Callable[[Any], Any], values: list[Any], wanted: Any) -> int:
    return list(map(function, values)).count(wanted)  # without a loop in Python


def _array(values: list[Any], number: int) -> np.ndarray:  # [n]
    kind = BY_NUMBER.get(number)
    if kind is None:
        raise _Irregular
    if not values:
        return np.empty(0, kind.dtype)
    found = set(map(type, values))
    if not found <= _ACCEPTED.get(kind.name, _NOTHING):
        raise _Irregular
    try:
        if kind.name == "string":
            if found == _TEXTS:
                return np.array([value.encode("utf-8", "surrogateescape") for value in values], object)
            return np.array([_bytes(value) for value in values], object)
        if kind.name in _CARRIERS:
            return np.array(values, _CARRIERS[kind.name]).astype(kind.dtype, copy=False)
    except (OverflowError, ValueError):  # beyond the range, or no base64
        raise _Irregular from None
    if kind.name != "float":
        return np.array(values, kind.dtype)
    with np.errstate(over="ignore"):  # beyond float32 is infinity, not an error
        return np.array(values, np.float64).astype(np.float32)


def _bytes(value: str | dict[str, Any]) -> bytes:
    if type(value) is dict and not is_base64(value):
        raise _Irregular
    return decoded(value)


def _explain(value: Any, number: int) -> RequestError | None:
    """The first thing wrong with a tensor, depth first; None if nothing is."""
    shape = _shape(value)
    rank = len(shape)
    pending = [(value, 0)]
    while pending:
        item, level = pending.pop()
        if not isinstance(item, list):
            if level != rank:
                return invalid(
                    f"JSON Value: {shown(item)} found at incorrect level: {level + 1} in the JSON DOM. "
                    f"Expected at level: {rank}"
                )
            error = _explain_value(item, BY_NUMBER.get(number), number)
            if error:
                return error
        elif level >= rank:
            return invalid(f"Encountered list at unexpected level: {level} expected < {rank}")
        elif len(item) != shape[level]:
            return invalid(
                f"Encountered list at unexpected size: {len(item)} at level: {level} expected size: {shape[level]}"
            )
        else:
            first = _first_irregular(item, partial(_read_as, shape[level + 1 :], number)) if rank <= MAX_RANK else 0
            pending.extend((member, level + 1) for member in reversed(item[first:]))
    return None


def _read_as(shape: list[int], number: int, values: list[Any]) -> None:
    if list(_dense(values, number).shape[1:]) != shape:
        raise _Irregular


def _first_irregular(values: list[Any], read: Callable[[list[Any]], Any]) -> int:
    """Where the first block begins that cannot be read: walking all of a large request would take seconds."""
    for start in range(0, len(values), _BLOCK):
        try:
            read(values[start : start + _BLOCK])
        except _Irregular:
            return start
    return len(values)


def _explain_value(value: Any, kind: TensorType | None, number: int) -> RequestError | None:
    name = kind.name if kind else _unreadable_name(number)
    accepted = _ACCEPTED.get(name, _NOTHING)
    if isinstance(value, dict) and name == "string":
        return _explain_base64(value)
    if not isinstance(value, dict) and not accepted:
        return RequestError(Code.UNIMPLEMENTED, f"Conversion of JSON Value: {shown(value)} to type: {name}")
    if type(value) in accepted and (name not in _CARRIERS or _fits(value, _CARRIERS[name])):
        return None
    return invalid(f"JSON Value: {shown(value)} Type: {type_name(value)} is not of expected type: {name}")


def _fits(value: int, carrier: type[np.integer]) -> bool:
    return np.iinfo(carrier).min <= value <= np.iinfo(carrier).max


def _explain_base64(value: dict[str, Any]) -> RequestError | None:
    if not is_base64(value):
        return invalid(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    try:
        decoded(value)
    except ValueError:
        return invalid("Unable to base64 decode")
    return None


def _unreadable_name(number: int) -> str:
    import tensorflow as tf

    return tf.dtypes.as_dtype(number).name


def _shape(value: Any) -> list[int]:
    """As the first element of each nested list says."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _explain_rows(instances: list[Any], types: Mapping[str, int]) -> RequestError:
    """The first element that does not go with the ones before it."""
    named = _is_named(instances[0])
    shapes: dict[str, list[int]] = {}
    start = _first_irregular(instances, lambda block: _regular_rows([instances[0], *block], types))
    for i, row in ((i, instances[i]) for i in (0, *range(max(1, start), len(instances)))):
        if _is_named(row) != named:
            expected = "object but got list" if named else "value/list but got object"
            return invalid(f"Expecting {expected} at item {i} of input list")
        for name, value in row.items() if named else [(min(types), row)]:
            error = _explain_element(name, value, types, shapes)
            if error:
                key = f" key: {name}" if named else ""
                return invalid(
                    f"Failed to process element: {i}{key} of 'instances' list. Error: {error.code.name}: "
                    f"{error.message}"
                )
        if named and row.keys() != types.keys():
            return invalid(
                f"Failed to process element: {i} of 'instances' list. JSON object: {shown(row)} keys must be equal to: "
                f"{','.join(sorted(types))}"
            )
    return _unexplained("instances")


def _explain_element(
    name: str, value: Any, types: Mapping[str, int], shapes: dict[str, list[int]]
) -> RequestError | None:
    if name not in types:
        return invalid(f"JSON object: does not have named input: {name}")
    error = _explain(value, types[name])
    if error:
        return error
    shape = _shape(value)
    expected = shapes.setdefault(name, shape)
    if np.prod(shape, dtype=int) != np.prod(expected, dtype=int):
        return invalid(f"Expecting tensor size: {np.prod(expected, dtype=int)} but got: {np.prod(shape, dtype=int)}")
    if shape != expected:
        return invalid(f"Expecting shape {_bracketed(expected)} but got: {_bracketed(shape)}")
    return None


def _bracketed(shape: list[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _unexplained(where: str) -> RequestError:
    return RequestError(Code.INTERNAL, f"{where} is not a tensor")
