"""The tensors in a JSON predict request, by rows ("instances") or by columns ("inputs").

A well-formed tensor is read level by level, each in one call; only what that refuses is walked value by value, in TF
Serving's order, to say what is wrong with it. Shapes are not compared with the signature: TF Serving does not either.
"""

import binascii
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np

from serving.server.errors import Code, RequestError, invalid
from serving.server.json_format import shown
from serving.tensors import BY_NUMBER, TensorType, object_array

_INTEGER_RANGES = {
    **dict.fromkeys(["int8", "int16", "int32", "uint8"], (-(2**31), 2**31 - 1)),  # then wrapped, as TF Serving does
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}


class _Irregular(Exception):
    """Not a tensor of the wanted type: `_explain` says why."""


def read_rows(instances: list[Any], types: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Arrays [n, ...] by input name; `types` has the DataType number of each input. Raises RequestError."""
    if not isinstance(instances[0], dict) and len(types) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    try:
        if not _is_named(instances[0]):
            if any(map(_is_named, instances)):
                raise _Irregular
            name = min(types)
            return {name: _dense(instances, types[name])}
        if not all(_is_named(row) and row.keys() == types.keys() for row in instances):
            raise _Irregular
        return {name: _dense([row[name] for row in instances], types[name]) for name in types}
    except _Irregular:
        raise _explain_rows(instances, types) from None


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


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: dict[str, Any]) -> bool:
    return len(value) == 1 and isinstance(value.get("b64"), str)


def _shape(value: Any) -> list[int]:
    """As the first element of each nested list says."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _dense(value: Any, number: int) -> np.ndarray:
    shape = _shape(value)
    level = [value]
    for size in shape:
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise _Irregular
        level = list(chain.from_iterable(level))
    return _array(level, number).reshape(shape)


def _array(values: list[Any], number: int) -> np.ndarray:  # [n]
    kind = BY_NUMBER.get(number)
    found = set(map(type, values))
    if kind is None:
        raise _Irregular
    if kind.name in ("float", "double"):
        if found - {int, float}:
            raise _Irregular
        with np.errstate(over="ignore"):  # beyond float32 is infinity, not an error
            return np.array(values, np.float64).astype(kind.dtype)
    if kind.name in _INTEGER_RANGES:
        low, high = _INTEGER_RANGES[kind.name]
        if found - {int} or (values and not (low <= min(values) and max(values) <= high)):
            raise _Irregular
        return np.array(values, np.uint64 if kind.name == "uint64" else np.int64).astype(kind.dtype)
    if kind.name == "bool" and not found - {bool}:
        return np.array(values, np.bool_)
    if kind.name == "string" and not found - {str, dict}:
        return object_array([_decoded(value) for value in values])
    raise _Irregular


def _decoded(value: str | dict[str, Any]) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if not _is_base64(value):
        raise _Irregular
    encoded = "".join(value["b64"].split()).encode("utf-8", "surrogateescape")
    try:
        if b"=" not in encoded:
            encoded += b"=" * (-len(encoded) % 4)  # padding is optional
        return binascii.a2b_base64(encoded, strict_mode=True)
    except binascii.Error:
        raise _Irregular from None


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
            pending.extend((member, level + 1) for member in reversed(item))
    return None


def _explain_value(value: Any, kind: TensorType | None, number: int) -> RequestError | None:
    try:
        _array([value], number)
    except _Irregular:
        pass
    else:
        return None
    name = kind.name if kind else _unreadable_name(number)
    if isinstance(value, dict) and name == "string":
        if _is_base64(value):
            return invalid("Unable to base64 decode")
        return invalid(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    if not isinstance(value, dict) and name not in ("float", "double", "bool", "string", *_INTEGER_RANGES):
        return RequestError(Code.UNIMPLEMENTED, f"Conversion of JSON Value: {shown(value)} to type: {name}")
    return invalid(f"JSON Value: {shown(value)} Type: {_type_name(value)} is not of expected type: {name}")


def _unreadable_name(number: int) -> str:
    import tensorflow as tf

    return tf.dtypes.as_dtype(number).name


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    names = {type(None): "Null", str: "String", dict: "Object", list: "Array"}
    return names.get(type(value), "Number")


def _explain_rows(instances: list[Any], types: Mapping[str, int]) -> RequestError:
    """The first element that does not go with the ones before it."""
    named = _is_named(instances[0])
    shapes: dict[str, list[int]] = {}
    for i, row in enumerate(instances):
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
