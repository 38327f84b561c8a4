"""PredictRequests, and the answers to them."""

import grpc
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def request(model: str, **inputs: list[bytes] | list[float]) -> bytes:
    """A PredictRequest of strings or floats, serialized."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name = model
    for name, values in inputs.items():
        tensor, texts = message.inputs[name], isinstance(values[0], bytes)
        tensor.dtype = types_pb2.DT_STRING if texts else types_pb2.DT_FLOAT
        tensor.tensor_shape.dim.add().size = len(values)
        (tensor.string_val if texts else tensor.float_val).extend(values)
    return message.SerializeToString()


def answer(address: str, message: bytes) -> predict_pb2.PredictResponse:
    """Raises grpc.RpcError for any status but OK."""
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return stub.Predict(predict_pb2.PredictRequest.FromString(message), timeout=30)


def values(response: predict_pb2.PredictResponse, output: str) -> list[float]:
    """Of a float output."""
    return list(response.outputs[output].float_val)
