"""The messages of TF Serving's gRPC protocol without TensorFlow.

`tensorflow_serving.apis` imports all of TensorFlow. The messages here are built from protocol.binpb, a
FileDescriptorSet of the same .proto files, in a pool of their own: a process may import both, and they exchange bytes,
never objects.
`python -m serving.protocol` writes protocol.binpb anew from the installed tensorflow-serving-api.
"""

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PATH = Path(__file__).with_name("protocol.binpb")
_ROOTS = (
    "predict",
    "classification",
    "regression",
    "inference",
    "get_model_status",
    "get_model_metadata",
    "model_management",
)


def _read_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_PATH.read_bytes()).file:
        pool.Add(file)
    return pool


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


def _describe_installed() -> descriptor_pb2.FileDescriptorSet:
    """Each root file after the files that it imports, so that a pool can take them in order."""
    import importlib

    described = descriptor_pb2.FileDescriptorSet()
    seen = set()

    def add(file: Any) -> None:
        if file.name in seen:
            return
        seen.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        file.CopyToProto(described.file.add())

    for name in _ROOTS:
        add(importlib.import_module(f"tensorflow_serving.apis.{name}_pb2").DESCRIPTOR)
    return described


if __name__ == "__main__":
    _PATH.write_bytes(_describe_installed().SerializeToString(deterministic=True))
else:
    _pool = _read_pool()
    PredictRequest = _message("PredictRequest")
    PredictResponse = _message("PredictResponse")
    ClassificationRequest = _message("ClassificationRequest")
    ClassificationResponse = _message("ClassificationResponse")
    RegressionRequest = _message("RegressionRequest")
    RegressionResponse = _message("RegressionResponse")
    MultiInferenceRequest = _message("MultiInferenceRequest")
    MultiInferenceResponse = _message("MultiInferenceResponse")
    GetModelStatusRequest = _message("GetModelStatusRequest")
    GetModelStatusResponse = _message("GetModelStatusResponse")
    GetModelMetadataRequest = _message("GetModelMetadataRequest")
    GetModelMetadataResponse = _message("GetModelMetadataResponse")
    SignatureDefMap = _message("SignatureDefMap")
    ReloadConfigRequest = _message("ReloadConfigRequest")
    ReloadConfigResponse = _message("ReloadConfigResponse")
