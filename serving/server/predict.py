"""Predict on a PredictRequest, the form of gRPC and of warm-up records."""

from collections.abc import Iterable, Mapping

import numpy as np
from tensorflow_serving.apis import predict_pb2

from serving.server.call import Call
from serving.server.errors import Code, RequestError, invalid
from serving.server.servable import DEFAULT_SIGNATURE, Servable
from serving.tensors import fill, to_numpy


def read(servable: Servable, request: predict_pb2.PredictRequest) -> Call:
    """Its answer is a PredictResponse without a model_spec. Raises RequestError."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise RequestError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    aliases = _filtered(signature.outputs, request.output_filter)
    inputs = {alias: _parse(alias, proto) for alias, proto in request.inputs.items()}
    return Call(
        _complete(signature, inputs),
        tuple(signature.outputs[alias].name for alias in aliases),
        lambda values: _write(aliases, values),
    )


def _write(aliases: list[str], values: list[np.ndarray]) -> predict_pb2.PredictResponse:
    response = predict_pb2.PredictResponse()
    for alias, array in zip(aliases, values, strict=True):
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


def _complete(signature, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All inputs by tensor name, defaults of the signature filled in. Raises RequestError."""
    wanted = sorted(signature.inputs)
    defaults = signature.defaults
    required = [alias for alias in wanted if alias not in defaults]
    if len(inputs) > len(wanted) or len(inputs) < len(required):
        raise invalid(
            f"input size does not match signature: {len(inputs)}!={len(wanted)} "
            f"len({_set(inputs)}) != len({_set(wanted)}). Sent extra: {_set(inputs.keys() - set(wanted))}. "
            f"Missing but required: {_set(set(required) - inputs.keys())}."
        )
    complete = {}
    for alias in wanted:
        if alias in inputs:
            complete[signature.inputs[alias].name] = inputs[alias]
        elif alias in defaults:
            complete[signature.inputs[alias].name] = to_numpy(defaults[alias])
        else:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in request and "
                f"no default value provided. Inputs expected to be in the set {_set(wanted)}."
            )
    unknown = inputs.keys() - set(wanted)
    if unknown:  # only with defaults can the count be right and a name too many
        raise invalid(f"Signature has no input {min(unknown)}. Inputs expected to be in the set {_set(wanted)}.")
    return complete


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
