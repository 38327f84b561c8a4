"""A client's calls as TF Serving's gRPC protocol."""

from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np

from serving import protocol
from serving.errors import DeadlineExceeded, InvalidRequest, NotFound, Overloaded, ServingError, Unavailable
from serving.metadata import Metadata, Signature, TensorSpec, VersionStatus
from serving.tensors import BY_NUMBER, fill, to_numpy

_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}
# the server does not limit messages; gRPC's own default of 4 MiB would refuse its larger answers
_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Rpc:
    def __init__(self, address: str, timeout: float, transport: grpc.Channel | None):
        self._timeout = timeout
        self._channel = transport or grpc.insecure_channel(address, _UNLIMITED)

    def close(self) -> None:
        self._channel.close()

    def predict(
        self, model: str, arrays: Mapping[str, np.ndarray], signature_name: str, version: int | None, known: Signature
    ) -> dict[str, np.ndarray] | None:
        request = _request(protocol.PredictRequest, model, version)
        request.model_spec.signature_name = signature_name
        for name, array in arrays.items():
            try:
                fill(request.inputs[name], array, packed=True)
            except ValueError as error:
                raise InvalidRequest(f"input {name}: {error}") from None
        answer = self._call("PredictionService/Predict", request, protocol.PredictResponse)
        return {name: to_numpy(tensor) for name, tensor in answer.outputs.items()}

    def status(self, model: str) -> list[VersionStatus]:
        request = _request(protocol.GetModelStatusRequest, model)
        answer = self._call("ModelService/GetModelStatus", request, protocol.GetModelStatusResponse)
        return [
            VersionStatus(v.version, _enum_name(v, "state"), _enum_name(v.status, "error_code"), v.status.error_message)
            for v in answer.model_version_status
        ]

    def metadata(self, model: str, version: int | None) -> Metadata:
        request = _request(protocol.GetModelMetadataRequest, model, version)
        request.metadata_field.append("signature_def")
        answer = self._call("PredictionService/GetModelMetadata", request, protocol.GetModelMetadataResponse)
        signatures = protocol.SignatureDefMap.FromString(answer.metadata["signature_def"].value).signature_def
        return Metadata(
            answer.model_spec.version.value,
            {name: Signature(_specs(s.inputs), _specs(s.outputs)) for name, s in signatures.items()},
        )

    def _call(self, method: str, request: Any, answer: Any) -> Any:
        call = self._channel.unary_unary(
            f"/tensorflow.serving.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return call(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise _BY_CODE.get(error.code(), ServingError)(error.details()) from None


def _request(kind: Any, model: str, version: int | None = None) -> Any:
    request = kind()
    request.model_spec.name = model
    if version is not None:
        request.model_spec.version.value = version
    return request


def _enum_name(message: Any, field: str) -> str:
    return message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[getattr(message, field)].name


def _specs(tensors: Mapping[str, Any]) -> dict[str, TensorSpec]:
    specs = {}
    for name, tensor in tensors.items():
        shape = tensor.tensor_shape
        if tensor.dtype in BY_NUMBER:
            sizes = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
            specs[name] = TensorSpec(BY_NUMBER[tensor.dtype].dtype, sizes)
    return specs
