"""A client's calls as TF Serving's REST protocol."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from serving.errors import DeadlineExceeded, InvalidRequest, NotFound, Overloaded, ServingError, Unavailable
from serving.metadata import Metadata, Signature, TensorSpec, VersionStatus
from serving.tensors import BY_NUMBER, as_bytes, object_array

_BY_STATUS = {400: InvalidRequest, 404: NotFound, 429: Overloaded, 503: Unavailable, 504: DeadlineExceeded}
_DTYPES = {f"DT_{t.name.upper()}": t.dtype for t in BY_NUMBER.values()}


class Rest:
    def __init__(self, address: str, timeout: float, transport: httpx.BaseTransport | None):
        self._address = address
        self._timeout = timeout
        # trust_env: a proxy of the environment must not stand between a client and the address it was given
        self._http = httpx.Client(base_url=f"http://{address}", timeout=timeout, transport=transport, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def predict(
        self, model: str, arrays: Mapping[str, np.ndarray], signature_name: str, version: int | None, known: Signature
    ) -> dict[str, np.ndarray] | None:
        """Column form, in which first dimensions may differ; None if the answer does not fit the outputs in `known`."""
        body = {"signature_name": signature_name, "inputs": {name: _to_json(a) for name, a in arrays.items()}}
        outputs = self._call("POST", f"{_path(model, version)}:predict", json.dumps(body).encode())["outputs"]
        if len(known.outputs) == 1:  # the name of a sole output is not in the answer
            outputs = {name: outputs for name in known.outputs}
        if not isinstance(outputs, dict) or outputs.keys() != known.outputs.keys():
            return None
        return {name: _from_json(outputs[name], spec) for name, spec in known.outputs.items()}

    def status(self, model: str) -> list[VersionStatus]:
        versions = self._call("GET", _path(model))["model_version_status"]
        return [VersionStatus(int(v["version"]), v["state"], **v["status"]) for v in versions]

    def metadata(self, model: str, version: int | None) -> Metadata:
        answer = self._call("GET", f"{_path(model, version)}/metadata")
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        return Metadata(
            int(answer["model_spec"]["version"]),
            {name: Signature(_specs(s["inputs"]), _specs(s["outputs"])) for name, s in signatures.items()},
        )

    def _call(self, method: str, path: str, body: bytes | None = None) -> Any:
        try:
            response = self._http.request(method, path, content=body)
        except httpx.TimeoutException:
            raise DeadlineExceeded(f"no answer from {self._address} within {self._timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"no server answers at {self._address} ({error})") from None
        try:
            answer = json.loads(response.content.decode("utf-8", "surrogateescape"))  # strings need not be UTF-8
            if response.status_code == 200:
                return answer
            message = answer["error"]
        except (ValueError, LookupError, TypeError):
            message = f"{self._address} answered {response.status_code} without JSON: is it a TF Serving REST port?"
        raise _BY_STATUS.get(response.status_code, ServingError)(message)


def _path(model: str, version: int | None = None) -> str:
    return f"/v1/models/{quote(model, safe='')}" + ("" if version is None else f"/versions/{version}")


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
    flat = [{"b64": b64encode(v).decode()} if isinstance(v, bytes) else v for v in array.reshape(-1).tolist()]
    return object_array(flat).reshape(array.shape).tolist()


def _from_json(value: Any, spec: TensorSpec) -> np.ndarray:
    if spec.dtype.kind != "O":
        return np.array(value, dtype=spec.dtype)
    strings = np.array(value, dtype=object)
    flat = [b64decode(v["b64"]) if isinstance(v, dict) else v for v in strings.reshape(-1).tolist()]
    return object_array(as_bytes(object_array(flat))).reshape(strings.shape)
