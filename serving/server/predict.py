"""Predict on a PredictRequest, the form of gRPC and of warm-up records."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from tensorflow_serving.apis import predict_pb2

from serving.server import classification, regression
from serving.server.call import Call
from serving.server.errors import Code, RequestError, invalid
from serving.server.servable import DEFAULT_SIGNATURE, Servable
from serving.server.signatures import Layout, layout
from serving.tensors import fill, to_numpy

METHOD = "tensorflow/serving/predict"


def read(servable: Servable, request: predict_pb2.PredictRequest, checks: bool = False, packed: bool = False) -> Call:
    """Its answer is a PredictResponse without a model_spec, `packed` into tensor_content. Raises RequestError."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = layout(servable, name)
    if signature is None:
        raise RequestError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    check_method(signature, checks)
    feeds = complete(signature, request.inputs, _parse)
    aliases = _filtered(signature.outputs, request.output_filter)
    return Call(
        feeds,
        tuple(signature.outputs[alias] for alias in aliases),
        lambda values: _write(aliases, values, packed),
    )


def check_method(signature: Layout, checks: bool) -> None:
    """Predict runs signatures of all methods; under --enable_signature_method_name_check no others."""
    if not checks:
        return
    methods = [METHOD, classification.METHOD, regression.METHOD]
    if signature.definition.method_name not in methods:
        raise RequestError(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{', '.join(methods)}}}. "
            f"Was: {signature.definition.method_name}",
        )


def _write(aliases: list[str], values: list[np.ndarray], packed: bool) -> predict_pb2.PredictResponse:
    response = predict_pb2.PredictResponse()
    for alias, array in zip(aliases, values, strict=True):
        try:
            fill(response.outputs[alias], array, packed)
        except ValueError as error:
            raise RequestError(Code.UNIMPLEMENTED, f"output {alias}: {error}") from None
    return response


def _parse(alias: str, proto: Any) -> np.ndarray:
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
                f"Outputs expected to be in the set {{{_joined(outputs)}}}."
            )
        if alias in chosen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        chosen.append(alias)
    return chosen or list(outputs)


def complete(
    signature: Layout, given: Mapping[str, Any], parse: Callable[[str, Any], np.ndarray] = lambda alias, value: value
) -> dict[str, np.ndarray]:
    """All inputs by tensor name, parsed, with the defaults of the signature filled in. Raises RequestError."""
    wanted, defaults = signature.inputs, signature.defaults
    if len(given) == len(wanted) and all(map(given.__contains__, wanted)):
        return {name: parse(alias, given[alias]) for alias, name in wanted.items()}
    if len(given) > len(wanted) or (len(given) < len(wanted) and not defaults):
        raise invalid(
            f"input size does not match signature: {len(given)}!={len(wanted)} len({{{_joined(given)}}}) != "
            f"len({{{_joined(wanted)}}}). Sent extra: {{{_joined(given.keys() - wanted.keys())}}}. "
            f"Missing but required: {{{_joined(wanted.keys() - given.keys())}}}."
        )
    tensors = {}
    used = 0
    for alias, name in wanted.items():
        if alias in given:
            tensors[name] = parse(alias, given[alias])
            used += 1
        elif alias in defaults:
            tensors[name] = _parse(alias, defaults[alias])
        else:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {name}) not found in request and no default value "
                f"provided. Inputs expected to be in the request {{{_joined(given)}}}, or default input alias set: "
                f"{_joined(defaults)}"
            )
    if used != len(given):
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {_joined(given.keys() & wanted.keys())}, "
            f"request input: {_joined(given)}"
        )
    return tensors


def _joined(names: Iterable[str]) -> str:
    return ",".join(sorted(names))
