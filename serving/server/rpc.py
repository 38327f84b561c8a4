"""TF Serving's gRPC services: methods as data, and one place that turns errors into status codes."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
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

from serving.server import classification, model_info, model_service, multi_inference, predict, regression
from serving.server.call import Call
from serving.server.engine import Engine
from serving.server.errors import GRPC, Code, RequestError
from serving.server.servable import DEFAULT_SIGNATURE, Servable

log = logging.getLogger("serving")

_MAX_MESSAGE = 1024
_CUT = "...TRUNCATED"
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # else a second server takes the same port and half of the requests, without an error
]


def build(engine: Engine, arguments: str = "") -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """A server without a port yet, and its health service, which is to be added where it is wanted.

    `arguments` are those of --grpc_channel_arguments, "name=value,...".
    """
    server = grpc.aio.server(options=[*_OPTIONS, *_options(arguments)])
    for service, methods in _METHODS.items():
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(method, engine), request.FromString, response.SerializeToString
            )
            for name, (method, request, response) in methods.items()
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


async def _predict(engine: Engine, request: predict_pb2.PredictRequest, timeout_ms: int | None) -> Any:
    policy = engine.policy
    read = partial(predict.read, request=request, checks=policy.checks_method, packed=policy.packs_tensors)
    return await _named(engine, model_info.not_missing(request), read, timeout_ms)


async def _classify(engine: Engine, request: Any, timeout_ms: int | None) -> Any:
    read = partial(classification.read, request=request, checks=engine.policy.checks_method)
    return await _named(engine, model_info.not_missing(request), read, timeout_ms)


async def _regress(engine: Engine, request: Any, timeout_ms: int | None) -> Any:
    read = partial(regression.read, request=request, checks=engine.policy.checks_method)
    return await _named(engine, model_info.not_missing(request), read, timeout_ms)


async def _multi_inference(engine: Engine, request: Any, timeout_ms: int | None) -> Any:
    read = partial(multi_inference.read, request=request, checks=engine.policy.checks_method)
    number, response = await engine.answer(multi_inference.spec_of(request), read, timeout_ms)
    for result, task in zip(response.results, request.tasks, strict=True):
        _name(result.model_spec, task.model_spec, number)
    return response


async def _named(
    engine: Engine, spec: model_pb2.ModelSpec, read: Callable[[Servable], Call], timeout_ms: int | None
) -> Any:
    number, response = await engine.answer(spec, read, timeout_ms)
    _name(response.model_spec, spec, number)
    return response


def _name(answered: model_pb2.ModelSpec, asked: model_pb2.ModelSpec, number: int) -> None:
    answered.name = asked.name
    answered.version.value = number
    answered.signature_name = asked.signature_name or DEFAULT_SIGNATURE


async def _metadata(engine: Engine, request: Any, timeout_ms: int | None) -> Any:
    return model_info.metadata(engine.models, model_info.not_missing(request), request.metadata_field)


async def _status(engine: Engine, request: Any, timeout_ms: int | None) -> Any:
    return model_info.status(engine.models, model_info.not_missing(request))


async def _reload(engine: Engine, request: Any, timeout_ms: int | None) -> Any:
    if engine.source is None:
        raise RequestError(Code.UNIMPLEMENTED, "This server does not take HandleReloadConfigRequest.")
    return await model_service.reload(engine.source, request)


_METHODS: dict[str, dict[str, tuple[Callable[..., Awaitable[Any]], Any, Any]]] = {
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name: {
        "Predict": (_predict, predict_pb2.PredictRequest, predict_pb2.PredictResponse),
        "Classify": (_classify, classification_pb2.ClassificationRequest, classification_pb2.ClassificationResponse),
        "Regress": (_regress, regression_pb2.RegressionRequest, regression_pb2.RegressionResponse),
        "MultiInference": (
            _multi_inference,
            inference_pb2.MultiInferenceRequest,
            inference_pb2.MultiInferenceResponse,
        ),
        "GetModelMetadata": (
            _metadata,
            get_model_metadata_pb2.GetModelMetadataRequest,
            get_model_metadata_pb2.GetModelMetadataResponse,
        ),
    },
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name: {
        "GetModelStatus": (
            _status,
            get_model_status_pb2.GetModelStatusRequest,
            get_model_status_pb2.GetModelStatusResponse,
        ),
        "HandleReloadConfigRequest": (
            _reload,
            model_management_pb2.ReloadConfigRequest,
            model_management_pb2.ReloadConfigResponse,
        ),
    },
}


def _answering(method: Callable[..., Awaitable[Any]], engine: Engine) -> Callable[..., Any]:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        remaining = context.time_remaining()
        timeout_ms = None if remaining is None else int(remaining * 1000)
        try:
            return await method(engine, request, timeout_ms)
        except RequestError as error:
            code, message = error.code, error.message
        except Exception as error:
            log.exception("a request failed in the server")
            code, message = Code.INTERNAL, f"{type(error).__name__}: {error}"
        if len(message) > _MAX_MESSAGE:
            message = message[: _MAX_MESSAGE - len(_CUT)] + _CUT
        await context.abort(GRPC[code], message)

    return answer
