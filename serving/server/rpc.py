"""TF Serving's gRPC services: methods as data, and one place that turns errors into status codes."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_service_pb2,
    regression_pb2,
)

from serving.server import classification, metrics, model_info, model_service, multi_inference, predict, regression
from serving.server.call import Call
from serving.server.engine import LARGE_BYTES, Caller, Engine
from serving.server.errors import GRPC, Code, RequestError, invalid
from serving.server.servable import DEFAULT_SIGNATURE, Servable

log = logging.getLogger("serving")

_MAX_MESSAGE = 1024
_CUT = "...TRUNCATED"
_COUNTED = ("Predict", "Classify", "Regress")  # TF Serving counts no other method
_COMPUTED = (*_COUNTED, "MultiInference")
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # else a second server takes the same port and half of the requests, without an error
]


def build(engine: Engine, arguments: str = "") -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """A server without a port yet, and its health service, which is to be added where it is wanted.

    `arguments` are those of --grpc_channel_arguments, "name=value,...".
    """
    limits = engine.policy.limits
    bounds = [("grpc.max_receive_message_length", limits.body_bytes or -1)]
    if limits.connections:
        bounds.append(("grpc.max_allowed_incoming_connections", limits.connections))
    server = grpc.aio.server(options=[*_OPTIONS, *bounds, *_options(arguments)])
    # As a stream, which is of one message, a request is there before its message is read: what is refused never is. It
    # costs what is not refused some 20 us, so that only a server that has bounds does it.
    streams = engine.max_queued > 0 or limits.arrival_seconds > 0
    handler = grpc.stream_unary_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
    for service, methods in _METHODS.items():
        handlers = {
            name: handler(_answering(method, engine, request.FromString, name, streams))
            for name, (method, request) in methods.items()
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    return server, health.aio.HealthServicer()


def _options(arguments: str) -> list[tuple[str, int | str]]:
    pairs = [argument.partition("=")[::2] for argument in arguments.split(",") if argument]
    return [(name, int(value) if value.lstrip("-").isdecimal() else value) for name, value in pairs]


async def report_serving(server: grpc.aio.Server, servicer: health.aio.HealthServicer) -> None:
    """Offers grpc.health.v1 with TF Serving's two services. Before the server starts."""
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for service in ("ModelService", "PredictionService"):
        await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)


async def _predict(engine: Engine, request: predict_pb2.PredictRequest, caller: Caller) -> Any:
    policy = engine.policy
    read = partial(predict.read, request=request, checks=policy.checks_method, packed=policy.packs_tensors)
    return await _named(engine, model_info.not_missing(request), read, caller)


async def _classify(engine: Engine, request: Any, caller: Caller) -> Any:
    read = partial(classification.read, request=request, checks=engine.policy.checks_method)
    return await _named(engine, model_info.not_missing(request), read, caller)


async def _regress(engine: Engine, request: Any, caller: Caller) -> Any:
    read = partial(regression.read, request=request, checks=engine.policy.checks_method)
    return await _named(engine, model_info.not_missing(request), read, caller)


async def _multi_inference(engine: Engine, request: Any, caller: Caller) -> Any:
    read = partial(multi_inference.read, request=request, checks=engine.policy.checks_method)
    spec = multi_inference.spec_of(request)
    number, response = await engine.answer(spec, read, caller)
    for result, task in zip(response.results, request.tasks, strict=True):
        _name(result.model_spec, task.model_spec, number)
    return response


async def _named(engine: Engine, spec: model_pb2.ModelSpec, read: Callable[[Servable], Call], caller: Caller) -> Any:
    number, response = await engine.answer(spec, read, caller)
    _name(response.model_spec, spec, number)
    return response


def _name(answered: model_pb2.ModelSpec, asked: model_pb2.ModelSpec, number: int) -> None:
    answered.name = asked.name
    answered.version.value = number
    answered.signature_name = asked.signature_name or DEFAULT_SIGNATURE


async def _metadata(engine: Engine, request: Any, caller: Caller) -> Any:
    return model_info.metadata(engine.models, model_info.not_missing(request), request.metadata_field)


async def _status(engine: Engine, request: Any, caller: Caller) -> Any:
    return model_info.status(engine.models, model_info.not_missing(request), engine.policy.reveals)


async def _reload(engine: Engine, request: Any, caller: Caller) -> Any:
    if engine.source is None:
        raise RequestError(Code.UNIMPLEMENTED, "This server does not take HandleReloadConfigRequest.")
    return await model_service.reload(engine.source, request)


_METHODS: dict[str, dict[str, tuple[Callable[..., Awaitable[Any]], Any]]] = {
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name: {
        "Predict": (_predict, predict_pb2.PredictRequest),
        "Classify": (_classify, classification_pb2.ClassificationRequest),
        "Regress": (_regress, regression_pb2.RegressionRequest),
        "MultiInference": (_multi_inference, inference_pb2.MultiInferenceRequest),
        "GetModelMetadata": (_metadata, get_model_metadata_pb2.GetModelMetadataRequest),
    },
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name: {
        "GetModelStatus": (_status, get_model_status_pb2.GetModelStatusRequest),
        "HandleReloadConfigRequest": (_reload, model_management_pb2.ReloadConfigRequest),
    },
}


def _answering(
    method: Callable[..., Awaitable[Any]], engine: Engine, parse: Callable[[bytes], Any], name: str, streams: bool
) -> Callable[..., Any]:
    token, patience = engine.policy.token, engine.policy.limits.arrival_seconds

    async def answer(sent: Any, context: grpc.aio.ServicerContext) -> bytes:
        began, model = time.perf_counter(), ""

        def count(code: Code) -> None:
            if name in _COUNTED:
                metrics.answered(model, name, "GRPC", code.name, (time.perf_counter() - began) * 1e6)

        remaining = context.time_remaining()
        timeout_ms = None if remaining is None else int(remaining * 1000)
        request_id = None
        try:
            if token:
                token.check(_metadata_value(context, "authorization"))
            if name in _COMPUTED:
                engine.admit(timeout_ms)
            request_id = _metadata_value(context, "x-request-id")
            raw = await _read(context, patience) if streams else sent
            request = parse(raw) if len(raw) <= LARGE_BYTES else await engine.aside(partial(parse, raw))
            model = request.model_spec.name if name in _COUNTED else ""
            response = await method(engine, request, Caller(timeout_ms, request_id, len(raw)))
            small = response.ByteSize() <= LARGE_BYTES
            serialized = response.SerializeToString() if small else await engine.aside(response.SerializeToString)
            count(Code.OK)
            return serialized
        except RequestError as error:
            refused = error
        except DecodeError:
            refused = invalid("The request is not the message that this method takes.")
        except Exception as error:
            log.exception("a request failed in the server")
            refused = RequestError(Code.INTERNAL, f"{type(error).__name__}: {error}", private=True)
        count(refused.code)
        message = engine.policy.told(refused, request_id)
        if len(message) > _MAX_MESSAGE:
            message = message[: _MAX_MESSAGE - len(_CUT)] + _CUT
        later = () if refused.retry_after is None else (("retry-after", str(refused.retry_after)),)
        await context.abort(GRPC[refused.code], message, later)
        raise AssertionError("abort raises")

    return answer


async def _read(context: grpc.aio.ServicerContext, seconds: float) -> bytes:
    """The message, which is to come within `seconds` (0: whenever)."""
    try:
        async with asyncio.timeout(seconds or None):
            message: Any = await context.read()
    except TimeoutError:
        raise RequestError(Code.DEADLINE_EXCEEDED, "The request did not arrive in time.") from None
    if message is grpc.aio.EOF:
        raise invalid("The request has no message.")
    return message


def _metadata_value(context: grpc.aio.ServicerContext, name: str) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else value.decode("latin-1")
    return None
