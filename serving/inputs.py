"""What a caller gives: tensors as arrays or lists, and examples of features."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from serving.errors import InvalidRequest
from serving.metadata import TensorSpec

_MAX_INT64 = 2**63 - 1
Typed = np.ndarray | np.generic  # has a type of its own
Example = Mapping[str, Any]  # each feature a scalar or a flat list of one kind


def as_array(name: str, value: Any, spec: TensorSpec | None) -> np.ndarray:
    """An array as it is, anything else as an array of the type in `spec`. Raises InvalidRequest."""
    if isinstance(value, Typed):
        return np.asarray(value)
    wants_strings = spec is not None and spec.dtype.kind == "O"
    try:
        objects = np.array(value, dtype=object)
        if any(isinstance(v, str | bytes) for v in objects.flat) or (wants_strings and not objects.size):
            return objects
        array = np.array(value)  # raises for ragged lists
        if spec is None or wants_strings or (array.dtype.kind == "f" and spec.dtype.kind != "f"):
            return array  # not ours to round: the server refuses it
        return np.array(value, dtype=spec.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"input {name} is not a tensor: {error}") from None


class Feature(NamedTuple):
    """The kind is that of tf.train.Feature; bytes may stand as str."""

    kind: Literal["bytes", "float", "int64"]
    values: list[Any]


def features(example: Example) -> dict[str, Feature]:
    """Integers and booleans become int64, as in TF Serving: a float feature wants 1.0. Raises InvalidRequest."""
    return {name: _feature(name, value) for name, value in example.items()}


def _feature(name: str, value: Any) -> Feature:
    values = np.atleast_1d(np.asarray(value, dtype=object)).tolist()
    if all(isinstance(v, str | bytes) for v in values) and values:
        return Feature("bytes", values)
    try:
        array = np.atleast_1d(np.array(value))
        if array.ndim == 1 and array.dtype.kind == "f":
            return Feature("float", array.tolist())
        if array.ndim == 1 and array.dtype.kind in "iub" and not (array > _MAX_INT64).any():
            return Feature("int64", array.astype(np.int64).tolist())
    except (ValueError, TypeError, OverflowError):
        pass
    raise InvalidRequest(f"feature {name} is not a scalar or flat list of numbers or of texts: {value!r:.80}")
