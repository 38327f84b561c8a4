"""What all JSON requests have in common: an object, and perhaps the name of a signature."""

from typing import Any

from serving.server.errors import RequestError, invalid
from serving.server.json_format import shown
from serving.server.json_parse import parse


def parsed(body: bytes) -> dict[str, Any]:
    """What can be said of a request before its model is looked up. Raises RequestError."""
    request = parse(body)
    if not isinstance(request, dict):
        raise misformed(request, "Is not object")
    if not isinstance(request.get("signature_name", ""), str):
        raise misformed(request, "not formatted correctly. 'signature_name' key must be a string value.")
    return request


def misformed(request: Any, what: str) -> RequestError:
    return invalid(f"JSON Value: {shown(request)} {what}")
