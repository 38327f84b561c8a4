"""TensorProto to numpy and back, by the rules of TensorFlow's own reader, without TensorFlow.

Works on the messages of either descriptor pool (serving.protocol's or tensorflow's), since it only reads fields.
String tensors are object arrays of bytes.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TensorType:
    """One DataType: its number on the wire, TensorFlow's name, the numpy type, and the typed field of TensorProto."""

    number: int
    name: str
    dtype: np.dtype
    field: str


_TYPES = [
    TensorType(1, "float", np.dtype(np.float32), "float_val"),
    TensorType(2, "double", np.dtype(np.float64), "double_val"),
    TensorType(3, "int32", np.dtype(np.int32), "int_val"),
    TensorType(4, "uint8", np.dtype(np.uint8), "int_val"),
    TensorType(5, "int16", np.dtype(np.int16), "int_val"),
    TensorType(6, "int8", np.dtype(np.int8), "int_val"),
    TensorType(7, "string", np.dtype(object), "string_val"),
    TensorType(9, "int64", np.dtype(np.int64), "int64_val"),
    TensorType(10, "bool", np.dtype(np.bool_), "bool_val"),
    TensorType(17, "uint16", np.dtype(np.uint16), "int_val"),
    TensorType(19, "half", np.dtype(np.float16), "half_val"),
    TensorType(22, "uint32", np.dtype(np.uint32), "uint32_val"),
    TensorType(23, "uint64", np.dtype(np.uint64), "uint64_val"),
]
BY_NUMBER = {t.number: t for t in _TYPES}
_BY_DTYPE = {t.dtype: t for t in _TYPES}
_MAX_RANK = 254
_MAX_ELEMENTS = 2**40  # far above any request that fits into a message, far below an overflow


def type_of(array: np.ndarray) -> TensorType:
    """The wire type of an array; arrays of str or bytes are string tensors. Raises ValueError for other types."""
    if array.dtype.kind in "SU":
        return _BY_DTYPE[np.dtype(object)]
    try:
        return _BY_DTYPE[array.dtype]
    except KeyError:
        raise ValueError(f"an array of {array.dtype} has no tensor type here") from None


def object_array(values: list[Any]) -> np.ndarray:  # [len(values)]
    """One element a value, whatever it is: np.array would spread lists and cut bytes at a final NUL."""
    return np.fromiter(values, dtype=object, count=len(values))


def as_bytes(values: np.ndarray) -> list[bytes]:
    """The elements of a string tensor in row-major order; str becomes UTF-8. Raises ValueError for anything else."""
    flat = values.reshape(-1).tolist()
    for i, value in enumerate(flat):
        if isinstance(value, str):
            flat[i] = value.encode("utf-8", "surrogateescape")
        elif not isinstance(value, bytes):
            raise ValueError(f"a string tensor holds str or bytes, not {type(value).__name__}")
    return flat


def fill(proto: Any, array: np.ndarray, packed: bool = False) -> None:
    """Writes an array into an empty TensorProto.

    `packed` puts numbers into `tensor_content`: smaller and faster, but TF Serving answers in the typed fields, which
    clients in other languages read. Raises ValueError for a dtype without a tensor type.
    """
    kind = type_of(array)
    proto.dtype = kind.number
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if kind.field == "string_val":
        proto.string_val.extend(as_bytes(array))
    elif packed:
        proto.tensor_content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    else:
        numbers = array.view(np.uint16) if kind.name == "half" else array
        getattr(proto, kind.field).extend(numbers.reshape(-1).tolist())


def to_numpy(proto: Any) -> np.ndarray:
    """The array that TensorFlow makes of a TensorProto.

    Of the typed field, missing values repeat the last one (none at all: zeros), and excess values are cut off.
    Raises ValueError when TensorFlow refuses the message: unknown type, negative or too many dimensions, content of
    another length than the shape needs.
    """
    kind = BY_NUMBER.get(proto.dtype)
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if kind is None or proto.tensor_shape.unknown_rank or len(shape) > _MAX_RANK or min(shape, default=0) < 0:
        raise ValueError("not a dense tensor of a known type and shape")
    count = prod(shape)
    if count > _MAX_ELEMENTS:
        raise ValueError("too many elements")
    if kind.field == "string_val":
        return _spread(object_array(list(proto.string_val)), count, b"").reshape(shape)
    if proto.tensor_content:
        if len(proto.tensor_content) != count * kind.dtype.itemsize:
            raise ValueError("tensor_content has another length than the shape needs")
        return np.frombuffer(proto.tensor_content, kind.dtype.newbyteorder("<")).astype(kind.dtype).reshape(shape)
    values = getattr(proto, kind.field)
    if kind.name == "half":
        return _spread(np.array(values, np.uint16), count, 0).view(np.float16).reshape(shape)
    wide = np.int64 if kind.field == "int_val" else kind.dtype  # int_val may hold more than the type; TensorFlow wraps
    return _spread(np.array(values, wide).astype(kind.dtype), count, 0).reshape(shape)


def _spread(values: np.ndarray, count: int, empty: Any) -> np.ndarray:  # [k] -> [count]
    if len(values) >= count:
        return values[:count]
    last = values[-1] if len(values) else empty
    spread = np.full(count, last, values.dtype)
    spread[: len(values)] = values
    return spread
