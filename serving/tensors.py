"""TensorProto to numpy and back, by the rules of TensorFlow's own reader, without TensorFlow.

Works on the messages of either descriptor pool (serving.protocol's or tensorflow's), since it only reads fields.
String tensors are object arrays of bytes.
"""

import sys
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import ml_dtypes
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
    TensorType(8, "complex64", np.dtype(np.complex64), "scomplex_val"),
    TensorType(9, "int64", np.dtype(np.int64), "int64_val"),
    TensorType(10, "bool", np.dtype(np.bool_), "bool_val"),
    TensorType(14, "bfloat16", np.dtype(ml_dtypes.bfloat16), "half_val"),
    TensorType(17, "uint16", np.dtype(np.uint16), "int_val"),
    TensorType(18, "complex128", np.dtype(np.complex128), "dcomplex_val"),
    TensorType(19, "half", np.dtype(np.float16), "half_val"),
    TensorType(22, "uint32", np.dtype(np.uint32), "uint32_val"),
    TensorType(23, "uint64", np.dtype(np.uint64), "uint64_val"),
]
BY_NUMBER = {t.number: t for t in _TYPES}
_BY_DTYPE = {t.dtype: t for t in _TYPES}
_PARTS: dict[str, np.dtype] = {  # what the typed field has instead: the bits, or real and imaginary part in turn
    "bfloat16": np.dtype(np.uint16),
    "half": np.dtype(np.uint16),
    "complex64": np.dtype(np.float32),
    "complex128": np.dtype(np.float64),
}
MAX_RANK = 64  # of numpy; TensorFlow takes 254
# what a short message may grow to by its shape; TensorFlow allocates whatever is asked, or dies of it
_MAX_FILLED_BYTES = 2**26
_STRING_BYTES = 32  # of an empty one: a pointer in numpy, a tstring in TensorFlow


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
        proto.tensor_content = _little_endian(array).tobytes()
    else:
        getattr(proto, kind.field).extend(array.ravel().view(_PARTS.get(kind.name, kind.dtype)).tolist())


def to_numpy(proto: Any) -> np.ndarray:
    """The array that TensorFlow makes of a TensorProto.

    Of the typed field, missing values repeat the last one (none at all: zeros), and excess values are cut off.
    Raises ValueError when TensorFlow refuses the message: unknown type, negative or too many dimensions, content of
    another length than the shape needs; and when more than 64 MiB of values are missing.
    """
    kind = BY_NUMBER.get(proto.dtype)
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if kind is None or len(shape) > MAX_RANK or min(shape, default=0) < 0:
        raise ValueError("not a dense tensor of a known type and shape")
    count = prod(shape)
    content, values = proto.tensor_content if count else b"", getattr(proto, kind.field)
    item_bytes = _STRING_BYTES if kind.name == "string" else kind.dtype.itemsize
    if not content and (count - len(values)) * item_bytes > _MAX_FILLED_BYTES:
        raise ValueError("too many missing values")
    if kind.name == "string":
        texts = object_array(_strings(content, count) if content else list(values))
        return _spread(texts, count, b"").reshape(shape)
    if content:
        if len(content) != count * kind.dtype.itemsize:
            raise ValueError("tensor_content has another length than the shape needs")
        if kind.name == "bool" and max(content) > 1:
            raise ValueError("tensor_content holds other bytes than 0 and 1")
        return _little_endian(np.frombuffer(content, kind.dtype)).reshape(shape).copy()
    part = _PARTS.get(kind.name, kind.dtype)
    wide = np.int64 if kind.field in ("int_val", "half_val") else part  # these may hold more; TensorFlow wraps
    parts = np.array(values, wide).astype(part)
    whole = len(parts) - len(parts) % (kind.dtype.itemsize // part.itemsize)
    return _spread(parts[:whole].view(kind.dtype), count, 0).reshape(shape)


def _little_endian(array: np.ndarray) -> np.ndarray:
    return array if sys.byteorder == "little" else array.byteswap()


def _strings(content: bytes, count: int) -> list[bytes]:
    """How TensorFlow packs texts: all lengths as varints, then all bytes. Raises ValueError."""
    sizes: list[int] = []
    size = shift = at = 0
    while len(sizes) < count:
        if at == len(content) or shift > 28:
            raise ValueError("tensor_content has no length for each text")
        byte = content[at]
        size, shift, at = size | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            sizes.append(size)
            size = shift = 0
    if sum(sizes) != len(content) - at:
        raise ValueError("tensor_content has another length than its texts")
    return [content[at + end - size : at + end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _spread(values: np.ndarray, count: int, empty: Any) -> np.ndarray:  # [k] -> [count]
    if len(values) == count:
        return values
    if len(values) > count:
        return values[:count]
    last = values[-1] if len(values) else empty
    spread = np.full(count, last, values.dtype)
    spread[: len(values)] = values
    return spread
