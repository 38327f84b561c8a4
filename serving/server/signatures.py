"""What the methods ask of a signature, and how their messages name tensors."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from serving.server.errors import invalid
from serving.server.servable import DEFAULT_SIGNATURE, Servable


class Layout(NamedTuple):
    """What each request asks of a SignatureDef, read from the message once."""

    definition: Any  # the SignatureDef
    inputs: dict[str, str]  # aliases in order -> tensor names
    types: dict[str, int]  # alias -> DataType
    outputs: dict[str, str]
    fetches: tuple[str, ...]  # the tensor names of all outputs
    defaults: dict[str, Any]  # alias -> TensorProto


def layout(servable: Servable, name: str) -> Layout | None:
    """None for a signature that is not there."""
    kept = servable.layouts
    if name not in kept and name in servable.signatures:
        definition = servable.signatures[name]
        inputs, outputs = sorted(definition.inputs.items()), sorted(definition.outputs.items())
        kept[name] = Layout(
            definition,
            {alias: info.name for alias, info in inputs},
            {alias: info.dtype for alias, info in inputs},
            {alias: info.name for alias, info in outputs},
            tuple(info.name for _, info in outputs),
            dict(definition.defaults),
        )
    return kept.get(name)


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
