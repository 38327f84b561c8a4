"""Regress: examples to one number each."""

from collections.abc import Callable
from typing import Any

import numpy as np
from tensorflow_serving.apis import regression_pb2

from serving.server.call import Call
from serving.server.errors import invalid
from serving.server.examples import serialized
from serving.server.servable import Servable
from serving.server.signatures import check_method, data_type, found, shape_text

METHOD = "tensorflow/serving/regress"
_INPUT, _OUTPUT = "inputs", "outputs"


def message(values: np.ndarray) -> regression_pb2.RegressionResponse:
    """Without a model_spec."""
    response = regression_pb2.RegressionResponse()
    for value in values.tolist():
        response.result.regressions.add(value=value)
    return response


def read(
    servable: Servable,
    request: regression_pb2.RegressionRequest,
    answer: Callable[[np.ndarray], Any] = message,
    checks: bool = False,
) -> Call:
    """The call's answer is what `answer` makes of the numbers [n]. Raises RequestError."""
    signature = found(servable, request.model_spec.signature_name)
    fed, fetches = prepare(signature, checks)
    examples = serialized(request.input)
    return Call({fed: examples}, fetches, lambda values: answer(results(len(examples), values[0])), "Regress")


def prepare(signature: Any, checks: bool) -> tuple[str, tuple[str, ...]]:
    """The names of the tensor to feed and of the one to fetch. Raises RequestError for another kind of signature."""
    if checks:
        check_method(signature, METHOD, "regression")
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if _INPUT not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {signature}")
    if _OUTPUT not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {signature}")
    return signature.inputs[_INPUT].name, (signature.outputs[_OUTPUT].name,)


def results(examples: int, output: np.ndarray) -> np.ndarray:  # [n] or [n, 1] -> [n]
    if output.ndim not in (1, 2) or output.shape[1:] not in ((), (1,)):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {shape_text(output)}"
        )
    if len(output) != examples:
        raise invalid(f"Input batch size did not match output batch size: {examples} vs. {len(output)}")
    if data_type(output) != "DT_FLOAT":
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {data_type(output)}")
    return output.reshape(-1)
