"""TF Serving's REST protocol as an ASGI application: routes as data, handlers that raise, one place that answers."""

import logging
import re
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from google.protobuf import json_format
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2

from serving.server import json_format as json_text
from serving.server import json_predict, model_info
from serving.server.engine import Engine
from serving.server.errors import HTTP, Code, RequestError, invalid

log = logging.getLogger("serving")

_MAX_INFLATED = 100 * 2**20
_MAX_VERSION = 2**63 - 1
_NOT_FOUND = "<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>"
_VERSION = r"(?:(?i:/versions/)(?P<version>[0-9]+)|(?i:/labels/)(?P<label>[^/:]+))?"
_MODEL = rf"(?i:/v1/models)(?:/(?P<name>[^/:]+))?{_VERSION}"


class Route(NamedTuple):
    method: str
    path: re.Pattern[str]
    answer: Callable[[Engine, model_pb2.ModelSpec, bytes, int], Awaitable[bytes]]


def application(engine: Engine, timeout_ms: int) -> Callable[..., Awaitable[None]]:
    """An ASGI application; `timeout_ms` bounds the run of one request."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        path = scope["raw_path"].decode("utf-8", "surrogateescape")
        try:
            if not re.match("/v1/", path, re.IGNORECASE):
                response: Response = HTMLResponse(_NOT_FOUND, 404)
            elif request.method == "OPTIONS":
                response = _preflight(request)
            else:
                route, spec = _match(request.method, path, scope["query_string"])
                body = _inflated(await request.body(), request.headers.get("content-encoding", ""))
                answer = await route.answer(engine, spec, body, timeout_ms)
                response = Response(answer, media_type="application/json")
        except ClientDisconnect:
            return
        except RequestError as error:
            response = _error(error.code, error.message)
        except Exception as error:
            log.exception("%s %s failed in the server", request.method, path)
            response = _error(Code.INTERNAL, f"{type(error).__name__}: {error}")
        await response(scope, receive, send)

    return application


def _error(code: Code, message: str) -> Response:
    return Response(json_text.error_body(message), HTTP[code], media_type="application/json")


def _preflight(request: Request) -> Response:
    allowed = re.match("https?://", request.headers.get("origin", ""))
    return Response(status_code=200 if allowed else 400, media_type="application/json")


def _match(method: str, path: str, query: bytes) -> tuple[Route, model_pb2.ModelSpec]:
    target = f"{path}?{query.decode('utf-8', 'surrogateescape')}" if query else path
    for route in _ROUTES:
        match = route.path.fullmatch(target) if route.method == method else None
        if match:
            return route, _spec(**match.groupdict())
    raise invalid(f"Malformed request: {method} {target}")


def _spec(name: str | None, version: str | None, label: str | None) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec()
    if not name:
        raise invalid("Missing model name in request.")
    spec.name = _percent_decoded(name)
    if version:
        if len(version) > 4000 or int(version) > _MAX_VERSION:  # int() itself refuses more digits than that
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    if label:
        spec.version_label = _percent_decoded(label)
    return spec


def _percent_decoded(text: str) -> str:
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")


def _inflated(body: bytes, encoding: str) -> bytes:
    """A gzip body unpacked; one that is broken or too big counts as empty, as in TF Serving."""
    if "gzip" not in encoding.lower():
        return body
    inflater = zlib.decompressobj(wbits=31)
    try:
        inflated = inflater.decompress(body, _MAX_INFLATED)
    except zlib.error:
        return b""
    return inflated if inflater.eof else b""


async def _predict(engine: Engine, spec: model_pb2.ModelSpec, body: bytes, timeout_ms: int) -> bytes:
    request = json_predict.parsed(body)
    _, text = await engine.answer(spec, lambda servable: json_predict.read(servable, request), timeout_ms)
    return text


async def _status(engine: Engine, spec: model_pb2.ModelSpec, body: bytes, timeout_ms: int) -> bytes:
    return _printed(model_info.status(engine.models, spec)).encode()


async def _metadata(engine: Engine, spec: model_pb2.ModelSpec, body: bytes, timeout_ms: int) -> bytes:
    """Composed by hand, as in TF Serving: an Any inside the printed message would carry a type URL."""
    response = model_info.metadata(engine.models, spec)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    text = (
        f'{{\n"model_spec":{_printed(response.model_spec)},\n'
        f'"metadata": {{"signature_def": {_printed(signatures)}}}\n}}\n'
    )
    return text.encode()


def _printed(message: Any) -> str:
    return json_format.MessageToJson(
        message, indent=1, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


_ROUTES = (
    Route("POST", re.compile(rf"(?i:/v1/models)/(?P<name>[^/:]+){_VERSION}:predict"), _predict),
    Route("GET", re.compile(_MODEL), _status),
    Route("GET", re.compile(f"{_MODEL}(?i:/metadata)"), _metadata),
)
