"""A client's calls as TF Serving's gRPC protocol."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import text_format

from serving import protocol
from serving.channels import Request
from serving.errors import InvalidRequest, ServingError
from serving.exchange import Exchange
from serving.inputs import Example, features
from serving.metadata import Class, Metadata, ModelSpec, Outputs, Signature, TensorSpec, VersionStatus
from serving.tensors import BY_NUMBER, fill, to_numpy

_Headers = Sequence[tuple[str, str]]


class Rpc:
    """Makes the exchanges of each call; `headers` go with every request as its metadata."""

    needs_signature = False  # messages carry types and names

    def __init__(self, headers: _Headers = ()):
        self._headers = tuple(headers)

    def predict(
        self,
        spec: ModelSpec,
        arrays: Mapping[str, np.ndarray],
        signature_name: str,
        known: Signature,
        output_filter: Collection[str],
        headers: _Headers,
    ) -> Exchange:
        request = protocol.PredictRequest(output_filter=output_filter)
        _fill_spec(request.model_spec, spec, signature_name)
        for name, array in arrays.items():
            try:
                fill(request.inputs[name], array, packed=True)
            except ValueError as error:
                raise InvalidRequest(f"input {name}: {error}") from None
        return self._exchange("PredictionService/Predict", request, protocol.PredictResponse, _outputs, headers)

    def classify(
        self, spec: ModelSpec, examples: Sequence[Example], signature_name: str, context: Example, headers: _Headers
    ) -> Exchange:
        request = protocol.ClassificationRequest()
        _fill_spec(request.model_spec, spec, signature_name)
        _fill_examples(request.input, examples, context)
        response = protocol.ClassificationResponse
        return self._exchange("PredictionService/Classify", request, response, lambda r: _classes(r.result), headers)

    def regress(
        self, spec: ModelSpec, examples: Sequence[Example], signature_name: str, context: Example, headers: _Headers
    ) -> Exchange:
        request = protocol.RegressionRequest()
        _fill_spec(request.model_spec, spec, signature_name)
        _fill_examples(request.input, examples, context)
        response = protocol.RegressionResponse
        return self._exchange("PredictionService/Regress", request, response, lambda r: _values(r.result), headers)

    def multi_inference(
        self,
        spec: ModelSpec,
        examples: Sequence[Example],
        tasks: Sequence[tuple[str, str]],
        context: Example,
        headers: _Headers,
    ) -> Exchange:
        request = protocol.MultiInferenceRequest()
        _fill_examples(request.input, examples, context)
        for method, signature_name in tasks:
            task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
            _fill_spec(task.model_spec, spec, signature_name)

        def read(response: Any) -> list[Any]:
            return [
                _classes(result.classification_result)
                if result.HasField("classification_result")
                else _values(result.regression_result)
                for result in response.results
            ]

        response = protocol.MultiInferenceResponse
        return self._exchange("PredictionService/MultiInference", request, response, read, headers)

    def status(self, spec: ModelSpec) -> Exchange:
        def read(response: Any) -> list[VersionStatus]:
            return [
                VersionStatus(
                    v.version, _enum_name(v, "state"), _enum_name(v.status, "error_code"), v.status.error_message
                )
                for v in response.model_version_status
            ]

        request = protocol.GetModelStatusRequest()
        _fill_spec(request.model_spec, spec)
        return self._exchange("ModelService/GetModelStatus", request, protocol.GetModelStatusResponse, read)

    def metadata(self, spec: ModelSpec) -> Exchange:
        def read(response: Any) -> Metadata:
            signatures = protocol.SignatureDefMap.FromString(response.metadata["signature_def"].value).signature_def
            return Metadata(
                response.model_spec.version.value,
                {name: Signature(_specs(s.inputs), _specs(s.outputs)) for name, s in signatures.items()},
            )

        request = protocol.GetModelMetadataRequest(metadata_field=["signature_def"])
        _fill_spec(request.model_spec, spec)
        return self._exchange("PredictionService/GetModelMetadata", request, protocol.GetModelMetadataResponse, read)

    def reload(self, config: str) -> Exchange:
        request = protocol.ReloadConfigRequest()
        try:
            text_format.Parse(config, request.config)
        except text_format.ParseError as error:
            raise InvalidRequest(f"not a ModelServerConfig in text form: {error}") from None
        method, response = "ModelService/HandleReloadConfigRequest", protocol.ReloadConfigResponse
        return self._exchange(method, request, response, lambda response: None)._replace(repeatable=False)

    def _exchange(self, method: str, request: Any, response: Any, read: Any, headers: _Headers = ()) -> Exchange:
        return Exchange(Request(f"/tensorflow.serving.{method}", request, response, (*self._headers, *headers)), read)


def _fill_spec(message: Any, spec: ModelSpec, signature_name: str = "") -> None:
    message.name = spec.name
    message.signature_name = signature_name
    if spec.version is not None:
        message.version.value = spec.version
    elif spec.label is not None:
        message.version_label = spec.label


def _fill_examples(message: Any, examples: Sequence[Example], context: Example) -> None:
    kind = message.example_list_with_context if context else message.example_list
    kind.SetInParent()
    for example in examples:
        _fill_example(kind.examples.add(), example)
    if context:
        _fill_example(kind.context, context)


def _fill_example(message: Any, example: Example) -> None:
    for name, (kind, values) in features(example).items():
        if kind == "bytes":
            values = [v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in values]
        getattr(message.features.feature[name], f"{kind}_list").value.extend(values)


def _outputs(response: Any) -> Outputs:
    outputs = Outputs()
    for name, tensor in response.outputs.items():
        try:
            outputs[name] = to_numpy(tensor)
        except ValueError as error:
            raise ServingError(f"output {name}: {error}") from None
    outputs.version = response.model_spec.version.value
    return outputs


def _classes(result: Any) -> list[list[Class]]:
    return [[Class(c.label, c.score) for c in classes.classes] for classes in result.classifications]


def _values(result: Any) -> np.ndarray:
    return np.array([regression.value for regression in result.regressions], np.float32)


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
