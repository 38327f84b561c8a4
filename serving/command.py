"""The command line of the client: `minibatch predict`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.arguments import Parser
from serving.client import DEFAULT_SIGNATURE, Client, Tls
from serving.errors import DeadlineExceeded, InvalidRequest, ServingError, Unavailable
from serving.tensors import object_array

_REFUSED, _MISSING, _NO_SERVER = 65, 66, 69


class _Missing(InvalidRequest):
    """A file that an option names cannot be read."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="minibatch predict", description="Asks a served model and prints its answer as JSON.", allow_abbrev=False
    )
    parser.add_argument("model", metavar="MODEL", help="name of the model on the server")
    parser.add_argument("--address", help="host:port (default 127.0.0.1:8501, for gRPC 127.0.0.1:8500)")
    parser.add_argument("--protocol", choices=["rest", "grpc"], default="rest", help="default rest")
    parser.add_argument("--signature_name", metavar="S", help=f"default {DEFAULT_SIGNATURE}")
    version = parser.add_mutually_exclusive_group()
    version.add_argument("--version", type=int, metavar="N", help="default: the one that the server prefers")
    version.add_argument("--label", metavar="L", help="the version that carries this label, such as stable or canary")
    parser.add_argument("--output", nargs="+", default=(), metavar="NAME", help="only these outputs")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="default 30")
    parser.add_argument("--token_file", type=Path, metavar="FILE", help="its text is sent as a bearer token")
    parser.add_argument("--tls_ca", type=Path, metavar="PEM", help="TLS, trusting what these certificates sign")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--inputs", metavar="JSON", help='columns by input name, such as \'{"text": ["a fine film"]}\'; "-": from stdin'
    )
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
            columns = json.loads(sys.stdin.read() if arguments.inputs == "-" else arguments.inputs)
        except ValueError as error:
            raise InvalidRequest(f"--inputs is not JSON: {error}") from None
        if not isinstance(columns, dict):
            raise InvalidRequest('--inputs is an object by input name, such as {"text": ["a fine film"]}')
        return columns, DEFAULT_SIGNATURE
    if arguments.image:
        try:
            return {"image_bytes": [_read(path) for path in arguments.image]}, DEFAULT_SIGNATURE
        except OSError as error:
            raise _Missing(f"--image {error.filename}: {error.strerror}") from None
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


def _ask(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    inputs, signature_name = _inputs(arguments)
    address = arguments.address or ("127.0.0.1:8501" if arguments.protocol == "rest" else "127.0.0.1:8500")
    try:
        token = arguments.token_file.read_text().strip() if arguments.token_file else None
        tls = Tls(arguments.tls_ca) if arguments.tls_ca else None
        client = Client(address, arguments.protocol, arguments.timeout, token=token, tls=tls)
    except OSError as error:  # of ssl, too, for a file that holds no certificate
        name = error.filename or arguments.tls_ca
        raise _Missing(f"{name}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    with client:
        return client.predict(
            arguments.model,
            inputs,
            arguments.signature_name or signature_name,
            arguments.version,
            label=arguments.label,
            output_filter=arguments.output,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the answer, or one line on stderr; returns the exit status (65 refused, 66 no such file, 69 no server,
    2 usage)."""
    arguments = _parser().parse_args(argv)
    try:
        outputs = _ask(arguments)
    except ServingError as error:
        hint = " Start one with `minibatch serve`, or give --address." if isinstance(error, Unavailable) else ""
        print(f"minibatch predict: {' '.join(str(error).split())}{hint}", file=sys.stderr)
        if isinstance(error, Unavailable | DeadlineExceeded):
            return _NO_SERVER
        return _MISSING if isinstance(error, _Missing) else _REFUSED
    print(json.dumps({name: _printable(array) for name, array in outputs.items()}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
