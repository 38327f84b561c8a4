"""From a request to its answer: the one way that REST and gRPC share."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from tensorflow_serving.apis import model_pb2

from serving.server import model_info
from serving.server.call import Call
from serving.server.lifecycle import Models
from serving.server.policy import Policy
from serving.server.servable import Servable
from serving.server.source import Source


class Engine:
    """Belongs to the event loop. `models` says which version answers; `workers` are the threads that run it."""

    def __init__(self, models: Models[Servable], workers: Executor, source: Source | None = None):
        self.models = models
        self.source = source  # what a reload changes; None: it is not offered
        self.policy = Policy()
        self._workers = workers

    async def answer(
        self, spec: model_pb2.ModelSpec, read: Callable[[Servable], Call], timeout_ms: int | None
    ) -> tuple[int, Any]:
        """The version that answered, and what `Call.write` made of its values. Raises RequestError."""
        with self.models.lease(spec.name, model_info.wanted_version(spec)) as (number, servable):
            call = read(servable)
            loop = asyncio.get_running_loop()
            values = await loop.run_in_executor(self._workers, servable.run, call.feeds, call.fetches, timeout_ms)
            return number, call.write(values)
