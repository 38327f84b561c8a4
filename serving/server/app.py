"""The process: ports first, then the models, then REST and gRPC on one event loop until a signal."""

import asyncio
import contextlib
import logging
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

from serving.server import admin, batching_parameters, http, memory, metrics, rest, rpc
from serving.server.access import check_exposure, rpc_tls, token_of
from serving.server.batching_parameters import CPUS, BatchingParameters
from serving.server.config import ConfigError, ModelConfig
from serving.server.engine import Engine
from serving.server.errors import RequestError
from serving.server.flags import Flags
from serving.server.http import DRAIN_SECONDS, Stop
from serving.server.lifecycle import Models
from serving.server.load import Loader
from serving.server.model_service import ConfigFile, unavailable
from serving.server.pages import Pages
from serving.server.policy import policy_of
from serving.server.ports import taken
from serving.server.servable import Servable
from serving.server.source import Source
from serving.server.upkeep import Upkeep

log = logging.getLogger("serving")

_LOAD_FAILED = 65
_START_LOADS = CPUS
_START_POLL_SECONDS = 0.02


async def serve(
    flags: Flags, configs: list[ModelConfig], rest_port: socket.socket | None, rpc_port: socket.socket | None
) -> None:
    """Serves on ports that `ports.hold` took (None: not this protocol); returns after SIGTERM or SIGINT.

    Raises ConfigError when a port was taken after all, or no model could be loaded.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    threads = ThreadPoolExecutor(  # apart, so that a load takes no worker away
        max(_START_LOADS, flags.num_load_threads) + max(1, flags.num_unload_threads), "load"
    )
    batching = _batching(flags)
    memory.settle()
    models = Models(
        Loader(flags, batching),
        threads.submit,
        flags.max_num_load_retries,
        flags.load_retry_interval_micros / 1e6,
        after_unload=memory.give_back,
    )
    check_exposure(flags)
    token, pages = token_of(flags), Pages(models, flags)
    if flags.profile == "hardened":
        metrics.bound(models.knows)
    stop_admin = await admin.start(flags, pages, token) if flags.admin_port else None
    source = Source(models, flags.serving_root, flags.allow_version_labels_for_unavailable_models)
    upkeep = Upkeep(models, source, flags.file_system_poll_wait_seconds)
    if not await _brought_up(models, source, upkeep, configs, stop):
        upkeep.stop()
        return
    models.loads = max(1, flags.num_load_threads)
    engine = Engine(
        models,
        source if flags.profile == "compatible" else None,
        policy_of(flags, token),
        threads=max(flags.rest_api_num_threads, flags.grpc_max_threads) or max(4, 2 * CPUS),
        batch_threads=batching.num_batch_threads,
        max_queued=flags.max_queued_requests,
        isolating=flags.profile == "hardened",
    )
    stops: list[Stop] = []
    if rest_port:
        stops.append(await _start_rest(engine, rest_port, flags, pages))
    if rpc_port:
        rpc_port.close()
    if rpc_port or flags.grpc_socket_path:
        stops.append(await _start_rpc(engine, flags))
    pages.started = True
    print(_ready_line(flags, models), flush=True)

    config_file = ConfigFile(source, flags)
    while not await _stopped(stop, flags.model_config_file_poll_wait_seconds):
        config_file.reread()
    log.info("stopping after the requests under way")
    pages.draining = True
    await asyncio.gather(*(stop_one() for stop_one in stops))
    if stop_admin:
        await stop_admin()
    upkeep.stop()
    threads.shutdown(wait=False)
    engine.close()


async def _start_rest(engine: Engine, held: socket.socket, flags: Flags, pages: Pages) -> Stop:
    served = rest.application(engine, flags.rest_api_timeout_in_ms, pages, flags.rest_api_enable_cors_support)
    try:
        return await http.start(served, held, flags)
    except OSError as error:
        raise taken(flags.bind, flags.rest_api_port, "--rest_api_port", error) from None


async def _start_rpc(engine: Engine, flags: Flags) -> Stop:
    server, health = rpc.build(engine, flags.grpc_channel_arguments)
    tls = rpc_tls(flags)
    addresses = [f"[{flags.bind}]:{flags.port}" if ":" in flags.bind else f"{flags.bind}:{flags.port}"]
    try:
        for address in addresses if flags.port else []:
            server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
        if flags.grpc_socket_path:
            server.add_insecure_port(f"unix:{flags.grpc_socket_path}")
    except RuntimeError as error:
        raise taken(flags.bind, flags.port, "--port", error) from None
    if flags.enable_grpc_healthcheck_service:
        await rpc.report_serving(server, health)
    await server.start()

    async def stop() -> None:
        await health.enter_graceful_shutdown()
        await server.stop(DRAIN_SECONDS)

    return stop


async def _brought_up(
    models: Models[Servable], source: Source, upkeep: Upkeep, configs: list[ModelConfig], stop: asyncio.Event
) -> bool:
    """Waits until every model is available; False when it was told to stop meanwhile.

    As in TF Serving, a base path that is not there yet, or is empty, is waited for, and a model that does not load ends
    the server; one of several in a serving root does not. Raises ConfigError.
    """
    try:
        source.name(configs)
    except RequestError as error:
        raise ConfigError(_failure(error), _LOAD_FAILED) from None
    models.loads = _START_LOADS
    source.poll()
    named = [config.name for config in configs]
    awaited = {*named, *models.names()}
    upkeep.start()
    while None in (outcomes := [models.outcome(name) for name in awaited]):
        if await _stopped(stop, _START_POLL_SECONDS):
            return False
    failed = [name for name in named if not models.outcome(name)]
    if failed or (outcomes and not any(outcomes)):
        raise ConfigError(_failure(unavailable(models, failed or awaited, "servable")), _LOAD_FAILED)
    return True


def _batching(flags: Flags) -> BatchingParameters:
    """For models without a file of their own. Raises ConfigError."""
    if not flags.batching_parameters_file:
        return BatchingParameters()
    try:
        return batching_parameters.read(flags.batching_parameters_file)
    except RequestError as error:
        raise ConfigError(f"--batching_parameters_file: {error}", _LOAD_FAILED) from None


def _failure(error: RequestError) -> str:
    return f"Failed to start server. Error: {error.code.name}: {error}"


async def _stopped(stop: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds if seconds > 0 else None)
    return stop.is_set()


def _ready_line(flags: Flags, models: Models[Servable]) -> str:
    where = [f"REST {flags.bind}:{flags.rest_api_port}"] if flags.rest_api_port else []
    where += [f"gRPC {flags.bind}:{flags.port}"] if flags.port else []
    served = sorted(models.available())
    count = len({name for name, _ in served})
    versions = ", ".join(f"{name}/{version}" for name, version in served) or "waiting for a first version"
    return f"Serving {count} model{'' if count == 1 else 's'} on {' and '.join(where)}: {versions}"
