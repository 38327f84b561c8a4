"""TF Serving's gRPC services: methods as data, and one place that turns errors into status codes."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2,
    predict_pb2,
    prediction_service_pb2,
)

from serving.server import model_info
from serving.server.errors import GRPC, Code, RequestError
from serving.server.lifecycle import Models
from serving.server.predict import predict
from serving.server.servable import DEFAULT_SIGNATURE, Servable

log = logging.getLogger("serving")

_MAX_MESSAGE = 1024
_CUT = "...TRUNCATED"
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # else a second server takes the same port and half of the requests, without an error
]


def build(models: Models[Servable], workers: Executor) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """A server without a port yet, and its health service."""
    server = grpc.aio.server(options=_OPTIONS)
    for service, methods in _METHODS.items():
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(run, models, workers), request.FromString, response.SerializeToString
            )
            for name, (run, request, response) in methods.items()
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return server, servicer


async def report_serving(servicer: health.aio.HealthServicer) -> None:
    for service in ("ModelService", "PredictionService"):
        await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)


def _predict(models: Models[Servable], request: predict_pb2.PredictRequest, timeout_ms: int | None) -> Any:
    spec = model_info.not_missing(request)
    with models.lease(spec.name, model_info.wanted_version(spec)) as (number, servable):
        response = predict(servable, request, timeout_ms)
    response.model_spec.name = spec.name
    response.model_spec.version.value = number
    response.model_spec.signature_name = spec.signature_name or DEFAULT_SIGNATURE
    return response


def _metadata(models: Models[Servable], request: Any, timeout_ms: int | None) -> Any:
    return model_info.metadata(models, model_info.not_missing(request), request.metadata_field)


def _status(models: Models[Servable], request: Any, timeout_ms: int | None) -> Any:
    return model_info.status(models, model_info.not_missing(request))


_METHODS: dict[str, dict[str, tuple[Callable[..., Any], Any, Any]]] = {
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name: {
        "Predict": (_predict, predict_pb2.PredictRequest, predict_pb2.PredictResponse),
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
    },
}


def _answering(run: Callable[..., Any], models: Models[Servable], workers: Executor) -> Callable[..., Any]:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        remaining = context.time_remaining()
        timeout_ms = None if remaining is None else int(remaining * 1000)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(workers, run, models, request, timeout_ms)
        except RequestError as error:
            code, message = error.code, error.message
        except Exception as error:
            log.exception("a request failed in the server")
            code, message = Code.INTERNAL, f"{type(error).__name__}: {error}"
        if len(message) > _MAX_MESSAGE:
            message = message[: _MAX_MESSAGE - len(_CUT)] + _CUT
        await context.abort(GRPC[code], message)

    return answer
