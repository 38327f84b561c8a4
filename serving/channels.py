"""gRPC channels, for threads and for asyncio."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc

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
from serving.exchange import Deadline
from serving.settings import Tls

_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthorized,
    grpc.StatusCode.PERMISSION_DENIED: Unauthorized,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


class Request(NamedTuple):
    method: str  # full, such as "/tensorflow.serving.PredictionService/Predict"
    message: Any
    answer: Any  # its message class
    metadata: tuple[tuple[str, str], ...] = ()


class _Channel:
    """What both kinds share: a call of each method, made once."""

    _channel: Any

    def __init__(self) -> None:
        self._calls: dict[str, Any] = {}

    def _call(self, request: Request, deadline: Deadline) -> Any:
        call = self._calls.get(request.method)
        if call is None:
            write, read = type(request.message).SerializeToString, request.answer.FromString
            call = self._calls[request.method] = self._channel.unary_unary(request.method, write, read)
        return call(request.message, timeout=deadline.left(), metadata=request.metadata)


class Channel(_Channel):
    """For any number of threads."""

    def __init__(self, channel: grpc.Channel):
        super().__init__()
        self._channel = channel

    def send(self, request: Request, deadline: Deadline) -> Any:
        """The message that answers. Raises the error of serving.errors that the status code stands for."""
        try:
            return self._call(request, deadline)
        except grpc.RpcError as error:
            raise _error(error, deadline) from None

    def close(self) -> None:
        self._channel.close()


class AsyncChannel(_Channel):
    """For the tasks of one event loop; `channel` makes it at the first call, since it belongs to the running loop."""

    def __init__(self, channel: Callable[[], grpc.aio.Channel]):
        super().__init__()
        self._make = channel
        self._channel = None

    async def send(self, request: Request, deadline: Deadline) -> Any:
        """The message that answers. Raises the error of serving.errors that the status code stands for."""
        if self._channel is None:
            self._channel = self._make()
        try:
            return await self._call(request, deadline)
        except grpc.RpcError as error:
            raise _error(error, deadline) from None

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


def connect(address: str, connect_seconds: float, tls: Tls | None, asyncio: bool) -> Channel | AsyncChannel:
    """Nothing is sent yet. Raises OSError for certificates that cannot be read."""
    library, options = grpc.aio if asyncio else grpc, _options(connect_seconds)
    if tls is None:
        make = partial(library.insecure_channel, address, options)
    else:
        pem = [Path(file).read_bytes() if file else None for file in (tls.ca_file, tls.key_file, tls.certificate_file)]
        make = partial(library.secure_channel, address, grpc.ssl_channel_credentials(*pem), options)
    return AsyncChannel(make) if asyncio else Channel(make())


def _options(connect_seconds: float) -> list[tuple[str, int]]:
    return [
        # the server does not limit messages; gRPC's own default of 4 MiB would refuse its larger answers
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_http_proxy", 0),  # a proxy of the environment must not stand before the address that was given
        ("grpc.min_reconnect_backoff_ms", int(connect_seconds * 1000)),  # what gRPC calls the connect time-out
        ("grpc.initial_reconnect_backoff_ms", 100),  # not 1000: else retries meet the same refusal for a second
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]


def _error(error: Any, deadline: Deadline) -> ServingError:
    code, words = error.code(), error.details()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return deadline.exceeded()
    kind = _BY_CODE.get(code, ServingError)
    if kind is Overloaded and "larger than" in words:  # a message, not a queue: later is no better
        kind = InvalidRequest
    if kind is Overloaded:
        return Overloaded(words, dict(error.trailing_metadata() or ()).get("retry-after"))
    return kind(words)
