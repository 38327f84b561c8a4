"""What the methods ask of a signature, and how their messages name tensors."""

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from serving.server.errors import invalid
from serving.server.servable import DEFAULT_SIGNATURE, Servable


def found(servable: Servable, name: str) -> Any:
    """The SignatureDef of that name, "" being the default. Raises RequestError."""
    name = name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return servable.signatures[name]


def check_method(signature: Any, method: str, kind: str) -> None:
    """For --enable_signature_method_name_check. Raises RequestError."""
    if signature.method_name != method:
        raise invalid(f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}")


def data_type(array: np.ndarray) -> str:  # such as DT_FLOAT
    return types_pb2.DataType.Name(tf.dtypes.as_dtype(array.dtype).as_datatype_enum)


def shape_text(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"
