"""From a request to its answer: the one way that REST and gRPC share."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from tensorflow_serving.apis import model_pb2

from serving.server import memory, metrics, model_info
from serving.server.backlog import OUT_OF_TIME, Backlog
from serving.server.batching import Batcher
from serving.server.call import Call
from serving.server.errors import NAMES, Code, RequestError
from serving.server.lifecycle import Models
from serving.server.policy import Policy
from serving.server.servable import Servable
from serving.server.source import Source
from serving.server.turns import Turns

LARGE_BYTES = 2**16  # what is larger is read and written in a thread, so that the event loop never stands still
_LARGE_VALUES = 4096
_TIDY_SECONDS = 1.0

T = TypeVar("T")


class Caller(NamedTuple):
    """Who asks: what is left of its patience (None: for ever), its x-request-id, and the bytes of its request."""

    timeout_ms: int | None
    request_id: str | None = None
    size: int = 0


class Engine:
    """Belongs to the event loop that is running when it is made. `models` says which version answers.

    `threads` run calls that are not batched; `batch_threads` run batches. Beyond `max_queued` requests under way (0: no
    bound) more are refused. With `isolating`, a call that fails takes none of its batch along.
    """

    def __init__(
        self,
        models: Models[Servable],
        source: Source | None = None,
        policy: Policy | None = None,
        *,
        threads: int = 4,
        batch_threads: int = 2,
        max_queued: int = 0,
        isolating: bool = False,
    ):
        self.models = models
        self.source = source  # what a reload changes; None: it is not offered
        self.policy = policy or Policy()
        self._loop = asyncio.get_running_loop()
        self._backlog = Backlog(threads)
        self._threads = ThreadPoolExecutor(2, "aside")
        self._batcher = Batcher(batch_threads, isolating=isolating)
        self.max_queued = max_queued
        self._under_way = 0
        self._turns = Turns()
        self._tidying = False

    def admit(self, timeout_ms: int | None, model: str = "") -> None:
        """Raises RequestError for a request that is not to be read: RESOURCE_EXHAUSTED when too many are under way,
        DEADLINE_EXCEEDED when it would wait for too long."""
        if self.max_queued and self._under_way >= self.max_queued:
            self._turns.take()
            metrics.dropped(model, "shed")
            raise RequestError(
                Code.RESOURCE_EXHAUSTED,
                f"The server is overloaded: {self._under_way} requests are under way, which is the most it takes.",
                retry_after=1,
            )
        if timeout_ms is not None and self._backlog.is_hopeless(timeout_ms / 1000):
            self._turns.take()
            metrics.dropped(model, "expired")
            raise RequestError(Code.DEADLINE_EXCEEDED, OUT_OF_TIME)

    async def answer(
        self, spec: model_pb2.ModelSpec, read: Callable[[Servable], Call], caller: Caller
    ) -> tuple[int, Any]:
        """The version that answered, and what `Call.write` made of its values. Raises RequestError.

        When this is cancelled, a call that has not begun is dropped.
        """
        self.admit(caller.timeout_ms, spec.name)  # again, since others came while this one was read
        began = time.monotonic()
        deadline = began + caller.timeout_ms / 1000 if caller.timeout_ms is not None else float("inf")
        self._under_way += 1
        status = Code.INTERNAL
        number = None
        try:
            wanted = model_info.wanted_version(spec)
            with self.models.lease(spec.name, wanted, caller.request_id) as (number, servable):
                small = caller.size <= LARGE_BYTES
                call = read(servable) if small else await self.aside(partial(read, servable))
                self.policy.limits.check_call(call, servable.ranges)
                if servable.monitor:
                    servable.monitor.offer(spec.name, number, call.feeds)
                ran = time.monotonic()
                if servable.batching is not None:
                    values = await self._batcher.run(servable, call, spec.name, deadline)
                elif small and servable.is_short(call.fetches):
                    values = servable.run_here(call.feeds, call.fetches)
                else:
                    run, fits = partial(servable.run, call.feeds, call.fetches), partial(servable.fits, call.fetches)
                    values = await self._backlog.put(spec.name, run, fits, deadline)
                if call.api:
                    metrics.ran(spec.name, call.api, (time.monotonic() - ran) * 1e6)
                metrics.outputs(spec.name, number, servable.named(call.fetches, values))
                written = call.write(values) if _is_small(values) else await self.aside(partial(call.write, values))
            status = Code.OK
            return number, written
        except RequestError as error:
            status = error.code
            raise
        except asyncio.CancelledError:
            status = Code.CANCELLED
            raise
        finally:
            self._under_way -= 1
            if number is not None:
                metrics.request(spec.name, number, NAMES[status], (time.monotonic() - began) * 1e6)

    async def aside(self, function: Callable[[], T]) -> T:
        """The result of a function that takes long in Python, run where it does not stop the event loop."""
        if not self._tidying:
            self._tidying = True
            self._loop.call_later(_TIDY_SECONDS, self._tidy)
        return await self._loop.run_in_executor(self._threads, function)

    def _tidy(self) -> None:
        """What large requests took goes back to the system: glibc would keep it, and this costs a millisecond."""
        self._tidying = False
        self._threads.submit(memory.trim)

    def close(self) -> None:
        self._backlog.close()
        self._threads.shutdown(wait=False)
        self._batcher.close()
        self._turns.close()


def _is_small(values: list[Any]) -> bool:
    return sum([value.size for value in values]) <= _LARGE_VALUES
