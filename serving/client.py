"""One client for TF Serving and for `serving.server`, over REST or gRPC, blocking or with asyncio, without TensorFlow.

    with Client("127.0.0.1:8501") as client:
        client.predict("reviews", {"text": ["a fine film"]})  # {"label": array([b"positive"]), "score": array([0.97])}

    async with AsyncClient("127.0.0.1:8500", "grpc") as client:
        await client.predict("reviews", {"text": ["a fine film"]})

Both have the same calls. Every call raises an error of the tree in serving.errors:

    ServingError
    |- InvalidRequest           wrong field, type, shape or signature
    |  `- Unsupported           this server, or this protocol, has no such call
    |- NotFound                 no such model or version
    |- Unauthorized             no token, or a wrong one
    |- Overloaded               the server's queue is full
    |- Unavailable              nobody listens there
    `- DeadlineExceeded         no answer in time

`python -m serving.command --help` is the command line.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

import numpy as np

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
from serving.exchange import Deadline, Exchange, Pause, Send, Steps, tries
from serving.inputs import Example, Typed, as_array
from serving.metadata import Class, Metadata, ModelSpec, Outputs, Signature, TensorSpec, VersionStatus
from serving.settings import Retries, Timeouts, Tls

__all__ = [
    "AsyncClient",
    "Class",
    "Client",
    "DeadlineExceeded",
    "InvalidRequest",
    "Metadata",
    "NotFound",
    "Outputs",
    "Overloaded",
    "Retries",
    "ServingError",
    "Signature",
    "TensorSpec",
    "Timeouts",
    "Tls",
    "Unauthorized",
    "Unavailable",
    "Unsupported",
    "VersionStatus",
]

DEFAULT_SIGNATURE = "serving_default"
Protocol = Literal["rest", "grpc"]
P = ParamSpec("P")
Answer = TypeVar("Answer")


class call(Generic[P, Answer]):
    """A call written once, as steps of serving.exchange: a Client returns its answer, an AsyncClient awaits it."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[Answer]]):
        self._steps = steps

    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, Answer]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Awaitable[Answer]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        if client is None:
            return self._steps

        @functools.wraps(self._steps)
        def run(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._run(self._steps(client, *args, **kwargs))

        return run


class _Calls:
    """Talks to the server at `address` ("host:port").

    `timeout` bounds each call: seconds in all, or Timeouts. `token` is sent as a bearer token; give it with `tls` only,
    or on the loopback. `transport` replaces the connection in tests: anything with `send` and `close`.
    """

    _asyncio: bool

    def __init__(
        self,
        address: str,
        protocol: Protocol = "rest",
        timeout: float | Timeouts = Timeouts(),  # noqa: B008  frozen
        retries: Retries = Retries(),  # noqa: B008  frozen
        token: str | None = None,
        tls: Tls | None = None,
        transport: Any = None,
    ):
        self._address = address
        self._timeouts = timeout if isinstance(timeout, Timeouts) else Timeouts(total=timeout)
        self._retries = retries
        headers = () if token is None else (("authorization", _one_line("the token", f"Bearer {token}")),)
        wire: Any
        dialect: Any
        if protocol == "rest":
            from serving import connections as wire
            from serving.rest import Rest as dialect
        elif protocol == "grpc":
            from serving import channels as wire
            from serving.rpc import Rpc as dialect
        else:
            raise ValueError(f"protocol is 'rest' or 'grpc', not {protocol!r}")
        self._dialect = dialect(headers)
        self._transport: Any = transport or wire.connect(address, self._timeouts.connect, tls, self._asyncio)
        self._known: dict[ModelSpec, Metadata] = {}

    @call
    def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        *,
        label: str | None = None,
        output_filter: Collection[str] = (),
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Steps[Outputs]:
        """The outputs of one signature for a batch; strings come back as object arrays of bytes.

        An array is sent with its own dtype; a list takes the dtype that the signature states. The signature is asked
        for once and kept; it is asked for anew when the server refuses or answers what does not fit it.
        """
        spec, deadline, headers = _spec(model, version, label), self._deadline(timeout), _request_id(request_id)

        def predict(known: Signature) -> Steps[Outputs]:
            arrays = {name: as_array(name, value, known.inputs.get(name)) for name, value in inputs.items()}
            exchange = self._dialect.predict(spec, arrays, signature_name, known, output_filter, headers)
            return (yield from self._ask(exchange, deadline))

        if not self._dialect.needs_signature and all(isinstance(value, Typed) for value in inputs.values()):
            return (yield from predict(_UNKNOWN))
        kept = self._known.get(spec)
        if kept is None or signature_name not in kept.signatures:
            return (yield from predict((yield from self._signature(spec, signature_name, deadline))))
        known = kept.signatures[signature_name]
        try:
            return (yield from predict(known))
        except (Overloaded, Unavailable, DeadlineExceeded, NotFound, Unauthorized):
            raise
        except ServingError:  # a new version may want other inputs, or answer other outputs, than the one asked about
            renewed = yield from self._signature(spec, signature_name, deadline)
            if renewed == known:
                raise
        return (yield from predict(renewed))

    @call
    def classify(
        self,
        model: str,
        examples: Sequence[Example],
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        *,
        label: str | None = None,
        context: Example | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Steps[list[list[Class]]]:
        """The classes of each example; `context` holds features that all examples share."""
        spec, headers = _spec(model, version, label), _request_id(request_id)
        exchange = self._dialect.classify(spec, examples, signature_name, context or {}, headers)
        return (yield from self._ask(exchange, self._deadline(timeout)))

    @call
    def regress(
        self,
        model: str,
        examples: Sequence[Example],
        signature_name: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        *,
        label: str | None = None,
        context: Example | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Steps[np.ndarray]:
        """One float32 for each example."""
        spec, headers = _spec(model, version, label), _request_id(request_id)
        exchange = self._dialect.regress(spec, examples, signature_name, context or {}, headers)
        return (yield from self._ask(exchange, self._deadline(timeout)))

    @call
    def multi_inference(
        self,
        model: str,
        examples: Sequence[Example],
        tasks: Sequence[tuple[Literal["classify", "regress"], str]],
        version: int | None = None,
        *,
        label: str | None = None,
        context: Example | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Steps[list[Any]]:
        """What classify or regress would answer for each (method, signature name), from one run. gRPC only."""
        spec, headers = _spec(model, version, label), _request_id(request_id)
        exchange = self._dialect.multi_inference(spec, examples, tasks, context or {}, headers)
        return (yield from self._ask(exchange, self._deadline(timeout)))

    @call
    def status(
        self, model: str, version: int | None = None, *, timeout: float | None = None
    ) -> Steps[list[VersionStatus]]:
        """All versions that the server knows of, newest first, or the one that is asked about."""
        return (yield from self._ask(self._dialect.status(ModelSpec(model, version)), self._deadline(timeout)))

    @call
    def metadata(
        self, model: str, version: int | None = None, *, label: str | None = None, timeout: float | None = None
    ) -> Steps[Metadata]:
        """The signatures of a version (None: the one that answers now), asked anew at each call."""
        return (yield from self._ask(self._dialect.metadata(_spec(model, version, label)), self._deadline(timeout)))

    @call
    def reload(self, config: str, *, timeout: float | None = None) -> Steps[None]:
        """Serves what `config` lists and nothing else: a ModelServerConfig as text, as in a models.config. gRPC only.

        Returns when every new model is available, so it may take a long `timeout`. Never tried again by itself.
        """
        yield from self._ask(self._dialect.reload(config), self._deadline(timeout))

    def _deadline(self, seconds: float | None) -> Deadline:
        return Deadline(self._timeouts.total if seconds is None else seconds, self._address)

    def _ask(self, exchange: Exchange, deadline: Deadline) -> Steps[Any]:
        return tries(exchange, deadline, self._retries)

    def _signature(self, spec: ModelSpec, name: str, deadline: Deadline) -> Steps[Signature]:
        self._known[spec] = yield from self._ask(self._dialect.metadata(spec), deadline)
        return self._known[spec].signatures.get(name, _UNKNOWN)  # the server says what is wrong with the name


class Client(_Calls):
    __doc__ = f"{_Calls.__doc__}\n    May be shared by threads."
    _asyncio = False

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[Answer]) -> Answer:
        try:
            step = next(steps)
            while True:
                try:
                    reply = self._take(step)
                except ServingError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as done:
            return done.value

    def _take(self, step: Send | Pause) -> Any:
        if isinstance(step, Send):
            return self._transport.send(*step)
        time.sleep(step.seconds)


class AsyncClient(_Calls):
    __doc__ = f"{_Calls.__doc__}\n    Belongs to the event loop that awaits its first call."
    _asyncio = True

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, steps: Steps[Answer]) -> Answer:
        try:
            step = next(steps)
            while True:
                try:
                    reply = await self._take(step)
                except ServingError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as done:
            return done.value

    async def _take(self, step: Send | Pause) -> Any:
        if isinstance(step, Send):
            return await self._transport.send(*step)
        await asyncio.sleep(step.seconds)


_UNKNOWN = Signature({}, {})


def _spec(model: str, version: int | None, label: str | None) -> ModelSpec:
    if version is not None and label is not None:
        raise InvalidRequest(f"version {version} and label {label!r}: give one of them")
    return ModelSpec(model, version, label)


def _request_id(request_id: str | None) -> tuple[tuple[str, str], ...]:
    return () if request_id is None else (("x-request-id", _one_line("request_id", request_id)),)


def _one_line(what: str, text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise InvalidRequest(f"{what} is printable ASCII, on one line")
    return text
