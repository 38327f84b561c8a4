"""Predict on a PredictRequest, the form of gRPC and of warm-up records."""

from collections.abc import Iterable

import numpy as np
from tensorflow_serving.apis import predict_pb2

from serving.server.errors import Code, RequestError, invalid
from serving.server.servable import DEFAULT_SIGNATURE, Servable
from serving.tensors import fill, to_numpy


def predict(
    servable: Servable, request: predict_pb2.PredictRequest, timeout_ms: int | None = None
) -> predict_pb2.PredictResponse:
    """The response but for its model_spec. Raises RequestError."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise RequestError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    outputs = _filtered(signature.outputs, request.output_filter)
    inputs = {alias: _parse(alias, proto) for alias, proto in request.inputs.items()}
    response = predict_pb2.PredictResponse()
    for alias, array in servable.run(signature, inputs, outputs, timeout_ms).items():
        try:
            fill(response.outputs[alias], array)
        except ValueError as error:
            raise RequestError(Code.UNIMPLEMENTED, f"output {alias}: {error}") from None
    return response


def _parse(alias: str, proto) -> np.ndarray:
    try:
        return to_numpy(proto)
    except ValueError:
        raise invalid(f"tensor parsing error: {alias}") from None


def _filtered(outputs: Iterable[str], wanted: Iterable[str]) -> list[str]:
    chosen: list[str] = []
    for alias in wanted:
        if alias not in outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {{{','.join(sorted(outputs))}}}."
            )
        if alias in chosen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        chosen.append(alias)
    return chosen or sorted(outputs)
