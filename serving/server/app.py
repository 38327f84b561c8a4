"""The process: ports first, then the models, then REST and gRPC on one event loop until a signal."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import uvicorn

from serving.server import rest, rpc
from serving.server.config import ConfigError, ModelConfig, discover
from serving.server.engine import Engine
from serving.server.flags import Flags
from serving.server.lifecycle import Models
from serving.server.load import load
from serving.server.ports import taken
from serving.server.servable import Servable

log = logging.getLogger("serving")

_DRAIN_SECONDS = 10
_LOAD_FAILED = 65

Stop = Callable[[], Awaitable[None]]


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
    models = Models(load)
    for config in configs:
        models.add(config)
    loader = ThreadPoolExecutor(1, "load")  # apart, so that a load takes no worker away
    workers = ThreadPoolExecutor(4 * (os.cpu_count() or 1), "request")
    await loop.run_in_executor(loader, models.step)
    if models.failures() and not models.available():
        failed = ", ".join(f"{name}/{version}: {error}" for name, version, error in models.failures())
        raise ConfigError(f"no model became available: {failed}", _LOAD_FAILED)

    engine = Engine(models, workers)
    stops: list[Stop] = []
    if rest_port:
        stops.append(await _start_rest(engine, rest_port, flags))
    if rpc_port:
        rpc_port.close()
        stops.append(await _start_rpc(engine, flags))
    print(_ready_line(flags, models), flush=True)

    while not await _stopped(stop, flags.file_system_poll_wait_seconds):
        await loop.run_in_executor(loader, _look_again, models, flags)
    log.info("stopping after the requests under way")
    await asyncio.gather(*(stop_one() for stop_one in stops))
    loader.shutdown(wait=False)
    workers.shutdown(wait=False)


class _RestServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `serve` handles them, for both protocols


async def _start_rest(engine: Engine, held: socket.socket, flags: Flags) -> Stop:
    settings = uvicorn.Config(
        rest.application(engine, flags.rest_api_timeout_in_ms),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    try:
        held.listen(settings.backlog)
    except OSError as error:
        raise taken(flags.bind, flags.rest_api_port, "--rest_api_port", error) from None
    server = _RestServer(settings)
    running = asyncio.create_task(server.serve(sockets=[held]))

    async def stop() -> None:
        server.should_exit = True
        await running

    return stop


async def _start_rpc(engine: Engine, flags: Flags) -> Stop:
    server, health = rpc.build(engine)
    try:
        server.add_insecure_port(f"[{flags.bind}]:{flags.port}" if ":" in flags.bind else f"{flags.bind}:{flags.port}")
    except RuntimeError as error:
        raise taken(flags.bind, flags.port, "--port", error) from None
    await server.start()
    await rpc.report_serving(health)

    async def stop() -> None:
        await health.enter_graceful_shutdown()
        await server.stop(_DRAIN_SECONDS)

    return stop


def _look_again(models: Models[Servable], flags: Flags) -> None:
    if flags.serving_root and flags.serving_root.is_dir():
        for config in discover(flags.serving_root):
            models.add(config)
    models.step()


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
