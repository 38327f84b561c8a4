"""A client's calls as TF Serving's REST protocol."""

import json
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from serving.connections import Reply, Request
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServingError,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from serving.exchange import Exchange
from serving.inputs import Example, features
from serving.metadata import Class, Metadata, ModelSpec, Outputs, Signature, TensorSpec, VersionStatus
from serving.tensors import BY_NUMBER, as_bytes, object_array

_BY_STATUS = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    413: InvalidRequest,  # of a proxy, or of a server with a limit
    429: Overloaded,
    501: Unsupported,
    503: Unavailable,
    504: DeadlineExceeded,
}
_DTYPES = {f"DT_{t.name.upper()}": t.dtype for t in BY_NUMBER.values()}
_Headers = Sequence[tuple[str, str]]


class Rest:
    """Makes the exchanges of each call; `headers` go with every request."""

    needs_signature = True  # JSON says neither the type of an output nor the name of a sole one

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
        """Column form: first dimensions may differ. Reading raises ServingError for another answer than `known`.

        REST has no output_filter: all outputs come, and the others are left out here.
        """
        body = {"signature_name": signature_name, "inputs": {name: _to_json(a) for name, a in arrays.items()}}
        unknown = set(output_filter) - known.outputs.keys()
        if unknown and known.outputs:
            raise InvalidRequest(f"no output {min(unknown)} in {signature_name}: {', '.join(sorted(known.outputs))}")

        def read(answer: Any) -> Outputs:
            outputs = _from_columns(answer["outputs"], known.outputs)
            chosen = Outputs((name, outputs[name]) for name in output_filter or outputs)
            chosen.version = spec.version
            return chosen

        return self._exchange("POST", f"{_path(spec)}:predict", read, body, headers)

    def classify(
        self, spec: ModelSpec, examples: Sequence[Example], signature_name: str, context: Example, headers: _Headers
    ) -> Exchange:
        def read(answer: Any) -> list[list[Class]]:
            return [[Class(label, score) for label, score in classes] for classes in answer["results"]]

        body = _examples(examples, signature_name, context)
        return self._exchange("POST", f"{_path(spec)}:classify", read, body, headers)

    def regress(
        self, spec: ModelSpec, examples: Sequence[Example], signature_name: str, context: Example, headers: _Headers
    ) -> Exchange:
        def read(answer: Any) -> np.ndarray:
            return np.array(answer["results"], np.float32)

        body = _examples(examples, signature_name, context)
        return self._exchange("POST", f"{_path(spec)}:regress", read, body, headers)

    def multi_inference(self, *_: Any) -> Exchange:
        raise Unsupported("TF Serving has no multi-inference in REST: take protocol='grpc'")

    def reload(self, *_: Any) -> Exchange:
        raise Unsupported("TF Serving reloads its configuration by gRPC only: take protocol='grpc'")

    def status(self, spec: ModelSpec) -> Exchange:
        def read(answer: Any) -> list[VersionStatus]:
            versions = answer["model_version_status"]
            return [VersionStatus(int(v["version"]), v["state"], **v["status"]) for v in versions]

        return self._exchange("GET", _path(spec), read)

    def metadata(self, spec: ModelSpec) -> Exchange:
        def read(answer: Any) -> Metadata:
            signatures = answer["metadata"]["signature_def"]["signature_def"]
            return Metadata(
                int(answer["model_spec"]["version"]),
                {name: Signature(_specs(s["inputs"]), _specs(s["outputs"])) for name, s in signatures.items()},
            )

        return self._exchange("GET", f"{_path(spec)}/metadata", read)

    def _exchange(self, method: str, path: str, read: Any, body: Any = None, headers: _Headers = ()) -> Exchange:
        text = b"" if body is None else json.dumps(body).encode()
        request = Request(method, path, text, (*self._headers, *headers))
        return Exchange(request, lambda reply: _answer(reply, read))


def _answer(reply: Reply, read: Any) -> Any:
    try:
        answer = json.loads(reply.body.decode("utf-8", "surrogateescape"))  # strings need not be UTF-8
        if reply.status == 200:
            return read(answer)
        message = str(answer["error"])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        message = f"an answer of status {reply.status} that is not TF Serving's: is this its REST port?"
    kind = _BY_STATUS.get(reply.status, ServingError)
    raise Overloaded(message, reply.headers.get("retry-after")) if kind is Overloaded else kind(message)


def _path(spec: ModelSpec) -> str:
    path = f"/v1/models/{quote(spec.name, safe='')}"
    if spec.version is not None:
        return f"{path}/versions/{spec.version}"
    return path if spec.label is None else f"{path}/labels/{quote(spec.label, safe='')}"


def _specs(tensors: dict[str, Any]) -> dict[str, TensorSpec]:
    specs = {}
    for name, tensor in tensors.items():
        shape = tensor["tensor_shape"]
        if tensor["dtype"] in _DTYPES:
            sizes = None if shape["unknown_rank"] else tuple(int(dim["size"]) for dim in shape["dim"])
            specs[name] = TensorSpec(_DTYPES[tensor["dtype"]], sizes)
    return specs


def _to_json(array: np.ndarray) -> Any:
    if array.dtype.kind not in "OSU":
        return array.tolist()
    flat = [_string(value) for value in array.reshape(-1).tolist()]
    return object_array(flat).reshape(array.shape).tolist()


def _string(value: Any) -> Any:
    return {"b64": b64encode(value).decode()} if isinstance(value, bytes) else value


def _examples(examples: Sequence[Example], signature_name: str, context: Example) -> dict[str, Any]:
    body = {"signature_name": signature_name, "examples": [_features(example) for example in examples]}
    return {**body, "context": _features(context)} if context else body


def _features(example: Example) -> dict[str, list[Any]]:
    return {name: [_string(value) for value in values] for name, (_, values) in features(example).items()}


def _from_columns(outputs: Any, specs: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
    if len(specs) == 1:  # the name of a sole output is not in the answer
        outputs = {name: outputs for name in specs}
    if not isinstance(outputs, dict) or outputs.keys() != specs.keys():
        raise ServingError("the model answered other outputs than its metadata names")
    return {name: _from_json(name, outputs[name], spec) for name, spec in specs.items()}


def _from_json(name: str, value: Any, spec: TensorSpec) -> np.ndarray:
    if spec.dtype.kind == "O":
        strings = np.array(value, dtype=object)
        flat = [b64decode(v["b64"]) if isinstance(v, dict) else v for v in strings.reshape(-1).tolist()]
        return object_array(as_bytes(object_array(flat))).reshape(strings.shape)
    array = np.array(value)
    if array.dtype.kind == "f" and spec.dtype.kind in "iu":  # numpy reads integers above int64 as floats
        array = np.array(value, dtype=object)
        if any(isinstance(number, float) for number in array.flat):
            raise _other_type(name, "floats", spec)
    elif array.size and (array.dtype.kind == "U" or (array.dtype.kind == "b") != (spec.dtype.kind == "b")):
        raise _other_type(name, str(array.dtype), spec)
    return array.astype(spec.dtype, copy=False)


def _other_type(name: str, found: str, spec: TensorSpec) -> ServingError:
    return ServingError(f"the model answered {name} as {found}; its metadata says {spec.dtype}")
