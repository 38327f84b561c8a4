"""Changes of what is served while the server runs: HandleReloadConfigRequest, and the config file read again."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from tensorflow_serving.apis import model_management_pb2

from serving.server import metrics
from serving.server.config import listed, read_config_file
from serving.server.errors import Code, RequestError, invalid
from serving.server.flags import Flags
from serving.server.lifecycle import Models
from serving.server.source import Source

log = logging.getLogger("serving")

_POLL_SECONDS = 0.02


async def reload(
    source: Source, request: model_management_pb2.ReloadConfigRequest
) -> model_management_pb2.ReloadConfigResponse:
    """Replaces the list of models, and waits for the new ones; the caller's deadline is the only limit.

    Raises RequestError as TF Serving does; what was applied before it stays applied.
    """
    if request.config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    before = {name: metrics.value(name) for name in request.metric_names}
    new = source.name(listed(request.config.model_config_list))
    log.info("models asked for: %s", ", ".join(m.name for m in request.config.model_config_list.config) or "none")
    await _available(source.models, new)
    response = model_management_pb2.ReloadConfigResponse()
    response.status.error_code = Code.OK
    for name, value in before.items():
        response.metric.add(name=name, int64_value_increase=metrics.value(name) - value)
    return response


async def _available(models: Models[Any], names: Iterable[str]) -> None:
    waiting = set(names)
    while waiting := {name for name in waiting if models.outcome(name) is None}:
        await asyncio.sleep(_POLL_SECONDS)
    if failed := {name for name in names if models.outcome(name) is False}:
        raise unavailable(models, failed, "model")


def unavailable(models: Models[Any], names: Iterable[str], what: str) -> RequestError:
    """TF Serving's error for versions that failed to load; `what` is its word for them."""
    failures = models.failures(names)
    told = "".join(
        f"{{{{name: {name} version: {number}}} due to error: {error.code.name}: {error}}}, "
        for name, number, error in failures
    )
    return RequestError(Code.UNKNOWN, f"{len(failures)} {what}(s) did not become available: {{{told}}}")


class ConfigFile:
    """--model_config_file, read again. A file that cannot be read or is refused is logged, and changes nothing."""

    def __init__(self, source: Source, flags: Flags):
        self._source, self._path = source, flags.model_config_file

    def reread(self) -> None:
        if not self._path:
            return
        try:
            self._source.name(read_config_file(self._path))
        except (OSError, RequestError) as error:
            log.error("--model_config_file %s not applied: %s", self._path, error)
