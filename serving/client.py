"""One client for TF Serving and for `serving.server`, over REST or gRPC, without TensorFlow.

    with Client("127.0.0.1:8501") as client:
        client.predict("reviews", {"text": ["a fine film"]})  # {"label": array([b"positive"]), "score": array([0.97])}

Every call raises an error of the tree in serving.errors:

    ServingError
    |- InvalidRequest           wrong field, type, shape or signature
    |- NotFound                 no such model or version
    |- Overloaded               the server's queue is full
    |- Unavailable              nobody listens there
    `- DeadlineExceeded         no answer within `timeout` seconds

`python -m serving.client --help` is the command line.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from serving.errors import DeadlineExceeded, InvalidRequest, NotFound, Overloaded, ServingError, Unavailable
from serving.metadata import Metadata, Signature, TensorSpec, VersionStatus
from serving.tensors import object_array

__all__ = [
    "Client",
    "DeadlineExceeded",
    "InvalidRequest",
    "Metadata",
    "NotFound",
    "Overloaded",
    "ServingError",
    "Signature",
    "TensorSpec",
    "Unavailable",
    "VersionStatus",
]

DEFAULT_SIGNATURE = "serving_default"


class Client:
    """Talks to the server at `address` ("host:port"); `timeout` is in seconds and bounds each call.

    `transport` replaces the connection in tests: an httpx transport for REST, a channel for gRPC.
    """

    def __init__(
        self,
        address: str,
        protocol: Literal["rest", "grpc"] = "rest",
        timeout: float = 30.0,
        transport: Any = None,
    ):
        self._wire: Any
        if protocol == "rest":
            from serving.rest import Rest

            self._wire = Rest(address, timeout, transport)
        elif protocol == "grpc":
            from serving.rpc import Rpc

            self._wire = Rpc(address, timeout, transport)
        else:
            raise ValueError(f"protocol is 'rest' or 'grpc', not {protocol!r}")
        self._known: dict[tuple[str, int | None], Metadata] = {}

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
    ) -> dict[str, np.ndarray]:
        """The outputs of one signature for a batch; strings come back as object arrays of bytes.

        An array is sent with its own dtype; a list takes the dtype that the signature states.
        """
        for fresh in (False, True):  # a new version may answer other outputs than the one asked about before
            signature = self._signature(model, signature_name, version, fresh)
            arrays = {name: _as_array(name, value, signature.inputs.get(name)) for name, value in inputs.items()}
            answer = self._wire.predict(model, arrays, signature_name, version, signature)
            if answer is not None:
                return answer
        raise ServingError(f"{model} answered other outputs than its metadata names")

    def status(self, model: str) -> list[VersionStatus]:
        """All versions that the server knows of, newest first."""
        return self._wire.status(model)

    def metadata(self, model: str, version: int | None = None) -> Metadata:
        """The signatures of a version (None: the newest available), asked anew at each call."""
        return self._wire.metadata(model, version)

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signature(self, model: str, name: str, version: int | None, fresh: bool) -> Signature:
        key = (model, version)
        if fresh or key not in self._known or name not in self._known[key].signatures:
            self._known[key] = self.metadata(model, version)
        return self._known[key].signatures.get(name, Signature({}, {}))  # the server says what is wrong with the name


def _as_array(name: str, value: Any, spec: TensorSpec | None) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    wants_strings = spec is not None and spec.dtype.kind == "O"
    try:
        objects = np.array(value, dtype=object)
        if any(isinstance(v, str | bytes) for v in objects.flat) or (wants_strings and not objects.size):
            return objects
        array = np.array(value)  # raises for ragged lists
        if spec is None or wants_strings or (array.dtype.kind == "f" and spec.dtype.kind != "f"):
            return array  # not ours to round: the server refuses it
        return np.array(value, dtype=spec.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"input {name} is not a tensor: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minibatch predict", description="Asks a served model and prints its answer as JSON.", allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="name of the model on the server")
    parser.add_argument("--address", help="host:port (default 127.0.0.1:8501, for gRPC 127.0.0.1:8500)")
    parser.add_argument("--protocol", choices=["rest", "grpc"], default="rest", help="default rest")
    parser.add_argument("--signature_name", metavar="S", help=f"default {DEFAULT_SIGNATURE}")
    parser.add_argument("--version", type=int, metavar="N", help="default: the newest that the server offers")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="default 30")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--inputs", metavar="JSON", help='columns by input name, such as \'{"text": ["a fine film"]}\'')
    asked.add_argument("--image", nargs="+", metavar="FILE", help="JPEG or PNG files, sent as image_bytes")
    asked.add_argument("--text", nargs="+", metavar="TEXT", help="sent as text")
    asked.add_argument("--user", nargs="+", metavar="USER", help="recommendations for these users")
    parser.add_argument("--item", nargs="+", metavar="ITEM", help="with --user: the rating of each user for each item")
    return parser


def _inputs(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The inputs and the signature that answers them. Raises InvalidRequest for JSON or files that cannot be read."""
    if arguments.item and not arguments.user:
        raise InvalidRequest("--item goes with --user; name the user, too")
    if arguments.inputs:
        try:
            columns = json.loads(arguments.inputs)
        except ValueError as error:
            raise InvalidRequest(f"--inputs is not JSON: {error}") from None
        if not isinstance(columns, dict):
            raise InvalidRequest('--inputs is an object by input name, such as {"text": ["a fine film"]}')
        return columns, DEFAULT_SIGNATURE
    if arguments.image:
        try:
            return {"image_bytes": [_read(path) for path in arguments.image]}, DEFAULT_SIGNATURE
        except OSError as error:
            raise InvalidRequest(f"--image {error.filename}: {error.strerror}") from None
    if arguments.text:
        return {"text": arguments.text}, DEFAULT_SIGNATURE
    if not arguments.item:
        return {"user_id": arguments.user}, "recommend"
    users, items = arguments.user, arguments.item
    if len(users) == 1:
        users = users * len(items)
    if len(users) != len(items):
        raise InvalidRequest(f"{len(users)} users and {len(items)} items: give one user, or as many as items")
    return {"user_id": users, "item_id": items}, DEFAULT_SIGNATURE


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _printable(array: np.ndarray) -> Any:
    if array.dtype.kind != "O":
        return array.tolist()
    texts = [value.decode("utf-8", "backslashreplace") for value in array.reshape(-1).tolist()]
    return object_array(texts).reshape(array.shape).tolist()


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the answer, or one line on stderr; returns the exit status (65 refused, 69 no server, 2 usage)."""
    arguments = _parser().parse_args(argv)
    address = arguments.address or ("127.0.0.1:8501" if arguments.protocol == "rest" else "127.0.0.1:8500")
    try:
        inputs, signature_name = _inputs(arguments)
        with Client(address, arguments.protocol, arguments.timeout) as client:
            outputs = client.predict(
                arguments.model, inputs, arguments.signature_name or signature_name, arguments.version
            )
    except ServingError as error:
        hint = " Start one with `minibatch serve`, or give --address." if isinstance(error, Unavailable) else ""
        print(f"minibatch predict: {' '.join(str(error).split())}{hint}", file=sys.stderr)
        return 69 if isinstance(error, Unavailable | DeadlineExceeded) else 65
    print(json.dumps({name: _printable(array) for name, array in outputs.items()}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
