"""TF Serving's REST protocol as an ASGI application: routes as data, handlers that raise, one place that answers."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from google.protobuf import json_format
from tensorflow_serving.apis import classification_pb2, get_model_metadata_pb2, model_pb2, regression_pb2

from serving.server import classification, http, json_examples, json_predict, metrics, model_info, regression
from serving.server import json_format as json_text
from serving.server.call import Call
from serving.server.connection import received
from serving.server.departures import Departures
from serving.server.engine import LARGE_BYTES, Caller, Engine
from serving.server.errors import NAMES, Code, RequestError, invalid
from serving.server.http import Application, Reply
from serving.server.json_request import parsed
from serving.server.limits import Limits
from serving.server.pages import Pages

log = logging.getLogger("serving")

_MAX_VERSION = 2**63 - 1
_SHORT_TARGET = 256  # bytes; what is longer is not worth keeping
_NOT_FOUND = b"<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>"
_CORS = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"POST, GET"),
    (b"access-control-allow-headers", b"Content-Type"),
]
_VERSION = r"(?:(?i:/versions/)(?P<version>[0-9]+)|(?i:/labels/)(?P<label>[^/:]+))?"
_MODEL = rf"(?i:/v1/models)(?:/(?P<name>[^/:]+))?{_VERSION}"


Answer = Callable[[Engine, model_pb2.ModelSpec, bytes, Caller], Awaitable[bytes]]


class Route(NamedTuple):
    method: str
    path: re.Pattern[str]
    answer: Answer
    api: str = ""  # as the metrics name it; only a route with one computes


class _Departed(Exception):
    """The client closed the connection before its request was whole."""


def application(engine: Engine, timeout_ms: int, pages: Pages | None = None, cors: bool = False) -> Application:
    """An ASGI application; `timeout_ms` bounds the run of one request, `pages` are served beside the models, and with
    `cors` a page of any origin may read the answers."""
    limits, token = engine.policy.limits, engine.policy.token
    departures = Departures()
    extra = _CORS if cors else []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        began, method, path = time.perf_counter(), scope["method"], scope["raw_path"]
        headers = dict(scope["headers"])
        model, api, code = "", "", Code.OK
        try:
            if page := pages and pages.answer(method, _text(path), scope["query_string"]):
                await http.answer(send, Reply(page.text.encode(), page.status, page.media.encode()))
                return
            if path[:4].lower() != b"/v1/":
                await http.answer(send, Reply(_NOT_FOUND, 404, b"text/html; charset=utf-8"))
                return
            if token:
                token.check(headers.get(b"authorization"))
            if method == "OPTIONS":
                code, reply = _preflight(headers)
            else:
                match = _match if len(path) + len(scope["query_string"]) < _SHORT_TARGET else _match.__wrapped__
                route, spec = match(method, path, scope["query_string"])
                model, api = spec.name, route.api
                text = await _body(receive, headers, limits)
                if api:
                    engine.admit(timeout_ms, model)
                if len(text) > LARGE_BYTES or b"content-encoding" in headers:
                    text = await engine.aside(partial(_checked, text, headers, limits))
                else:
                    limits.check_json(text)
                with departures.noticed(receive):
                    caller = Caller(timeout_ms, _request_id(headers), len(text))
                    reply = Reply(await route.answer(engine, spec, text, caller))
        except (_Departed, asyncio.CancelledError):  # nobody waits for an answer
            return
        except Exception as error:
            if not isinstance(error, RequestError):
                log.exception("%s %s failed in the server", method, _text(path))
                error = RequestError(Code.INTERNAL, f"{type(error).__name__}: {error}", private=True)
            code, told = error.code, engine.policy.told(error, _request_id(headers))
            reply = Reply(json_text.error_body(told), error.http, retry_after=error.retry_after)
        await http.answer(send, reply, extra)
        metrics.answered(model, api, "REST", NAMES[code], (time.perf_counter() - began) * 1e6)

    return application


async def _body(receive: Any, headers: dict[bytes, bytes], limits: Limits) -> bytes:
    limits.check_size(int(headers.get(b"content-length", 0)))
    body = received(receive)
    if body is not None:
        limits.check_size(len(body))
        return body
    message = await _message(receive)
    if not message["more_body"]:
        limits.check_size(len(message["body"]))
        return message["body"]
    parts, size = [message["body"]], len(message["body"])
    while message["more_body"]:
        message = await _message(receive)
        parts.append(message["body"])
        size += len(message["body"])
        limits.check_size(size)
    return b"".join(parts)


async def _message(receive: Any) -> Any:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise _Departed
    return message


def _checked(body: bytes, headers: dict[bytes, bytes], limits: Limits) -> bytes:
    text = limits.inflated(body, headers.get(b"content-encoding", b"").decode("latin-1"))
    limits.check_json(text)
    return text


def _request_id(headers: dict[bytes, bytes]) -> str | None:
    given = headers.get(b"x-request-id")
    return None if given is None else given.decode("latin-1")


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _preflight(headers: dict[bytes, bytes]) -> tuple[Code, Reply]:
    if re.match(b"https?://", headers.get(b"origin", b"")):
        return Code.OK, Reply(b"")
    return Code.FAILED_PRECONDITION, Reply(b"", 400)


@lru_cache(1024)  # a busy server sees few different ones; what raises is not kept
def _match(method: str, path: bytes, query: bytes) -> tuple[Route, model_pb2.ModelSpec]:
    target = _text(path + b"?" + query if query else path)
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


def _computing(parse: Callable[[bytes], Any], read: Callable[..., Call]) -> Answer:
    """`parse` makes what can be said before the model is looked up, `read` what its signature is needed for."""

    async def answer(engine: Engine, spec: model_pb2.ModelSpec, body: bytes, caller: Caller) -> bytes:
        request = parse(body) if caller.size <= LARGE_BYTES else await engine.aside(partial(parse, body))
        checks = engine.policy.checks_method
        _, text = await engine.answer(spec, lambda servable: read(servable, request, checks=checks), caller)
        return text

    return answer


_predict = _computing(parsed, json_predict.read)
_classify = _computing(
    lambda body: json_examples.fill(classification_pb2.ClassificationRequest(), body),
    partial(classification.read, answer=json_text.classes),
)
_regress = _computing(
    lambda body: json_examples.fill(regression_pb2.RegressionRequest(), body),
    partial(regression.read, answer=json_text.regressions),
)


async def _status(engine: Engine, spec: model_pb2.ModelSpec, body: bytes, caller: Caller) -> bytes:
    return _printed(model_info.status(engine.models, spec, engine.policy.reveals)).encode()


async def _metadata(engine: Engine, spec: model_pb2.ModelSpec, body: bytes, caller: Caller) -> bytes:
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


_VERB = rf"(?i:/v1/models)/(?P<name>[^/:]+){_VERSION}:"
_ROUTES = (
    Route("POST", re.compile(f"{_VERB}predict"), _predict, "predict"),
    Route("POST", re.compile(f"{_VERB}classify"), _classify, "classify"),
    Route("POST", re.compile(f"{_VERB}regress"), _regress, "regress"),
    Route("GET", re.compile(_MODEL), _status),
    Route("GET", re.compile(f"{_MODEL}(?i:/metadata)"), _metadata),
)
