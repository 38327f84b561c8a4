"""Predict in JSON: rows ("instances" -> "predictions") or columns ("inputs" -> "outputs")."""

from typing import Any

from serving.server import json_format
from serving.server.call import Call
from serving.server.errors import RequestError, invalid
from serving.server.json_parse import parse
from serving.server.json_tensors import read_columns, read_rows
from serving.server.servable import DEFAULT_SIGNATURE, Servable


def parsed(body: bytes) -> dict[str, Any]:
    """What can be said of a request before its model is looked up. Raises RequestError."""
    request = parse(body)
    if not isinstance(request, dict):
        raise invalid(f"JSON Value: {json_format.shown(request)} Is not object")
    if not isinstance(request.get("signature_name", ""), str):
        raise _misformed(request, "not formatted correctly. 'signature_name' key must be a string value.")
    return request


def read(servable: Servable, request: dict[str, Any]) -> Call:
    name = request.get("signature_name") or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    types = {alias: info.dtype for alias, info in signature.inputs.items()}
    if not types:
        raise invalid(f"Failed to get input map for signature: {name}")
    by_rows = _has_rows(request)
    inputs = read_rows(request["instances"], types) if by_rows else read_columns(request["inputs"], types)
    aliases = sorted(signature.outputs)
    text = json_format.rows if by_rows else json_format.columns
    return Call(
        {signature.inputs[alias].name: array for alias, array in inputs.items()},
        tuple(signature.outputs[alias].name for alias in aliases),
        lambda values: text(dict(zip(aliases, values, strict=True))),
    )


def _has_rows(request: dict[str, Any]) -> bool:
    if "instances" not in request:
        if "inputs" not in request:
            raise invalid("Missing 'inputs' or 'instances' key")
        return False
    if "inputs" in request:
        raise _misformed(
            request, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if not isinstance(request["instances"], list):
        raise _misformed(request, "Expecting 'instances' to be an list/array")
    if not request["instances"]:
        raise _misformed(request, "No values in 'instances' array")
    return True


def _misformed(request: dict[str, Any], what: str) -> RequestError:
    return invalid(f"JSON Value: {json_format.shown(request)} {what}")
