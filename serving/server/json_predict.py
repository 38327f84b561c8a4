"""Predict in JSON: rows ("instances" -> "predictions") or columns ("inputs" -> "outputs")."""

from typing import Any

from serving.server import json_format
from serving.server.call import Call
from serving.server.errors import invalid
from serving.server.json_request import misformed
from serving.server.json_tensors import read_columns, read_rows
from serving.server.predict import check_method, complete
from serving.server.servable import DEFAULT_SIGNATURE, Servable
from serving.server.signatures import layout


def read(servable: Servable, request: dict[str, Any], checks: bool = False) -> Call:
    """`request` is what `json_request.parsed` returned; the call's answer is a text. Raises RequestError."""
    name = request.get("signature_name") or DEFAULT_SIGNATURE
    signature = layout(servable, name)
    if signature is None:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    if not signature.types:
        raise invalid(f"Failed to get input map for signature: {request.get('signature_name') or 'DEFAULT'}")
    if _has_rows(request):
        inputs, text = read_rows(request["instances"], signature.types), json_format.rows
    else:
        inputs, text = read_columns(request["inputs"], signature.types), json_format.columns
    check_method(signature, checks)
    return Call(
        complete(signature, inputs),
        signature.fetches,
        lambda values: text(dict(zip(signature.outputs, values, strict=True))),
    )


def _has_rows(request: dict[str, Any]) -> bool:
    if "instances" not in request:
        if "inputs" not in request:
            raise invalid("Missing 'inputs' or 'instances' key")
        return False
    if "inputs" in request:
        raise misformed(request, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
    if not isinstance(request["instances"], list):
        raise misformed(request, "Expecting 'instances' to be an list/array")
    if not request["instances"]:
        raise misformed(request, "No values in 'instances' array")
    return True
