"""`minibatch launch --workers N train PRESET [options]`: one model trained by N processes on this machine."""

import argparse
import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from contextlib import suppress
from typing import TextIO

from pipeline.arguments import parse
from pipeline.errors import UNAVAILABLE, USAGE, Parser, UserError
from pipeline.release import child

GRACE = 5.0
"""Seconds that workers have to end by themselves: after one has failed, and again after they were told to end."""
LINE = 1 << 20  # bytes in the longest line of a worker's output
STOPS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str]) -> None:
    """Runs the workers to their end. Raises UserError with the exit code of the first that failed."""
    options = _parse(arguments)
    parse("train", options.command[1:])  # what is wrong is said once, and before anything starts
    addresses = [f"127.0.0.1:{port}" for port in ports(options.workers, options.port)]
    words = [sys.executable, "-m", "pipeline", *options.command, "--train.strategy", "multi_worker"]
    asyncio.run(_run(words, [environment(addresses, i) for i in range(options.workers)]))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="minibatch launch",
        usage="minibatch launch --workers N [--port P] train PRESET [options]",
        description="Trains one model in N processes on this machine (--train.strategy multi_worker). Each line that "
        "a worker prints begins with its number; worker 0 alone writes the run. When one fails, the others are ended.",
        allow_abbrev=False,
    )
    parser.add_argument("--workers", type=int, required=True, metavar="N", help="how many processes")
    parser.add_argument("--port", type=int, metavar="P", help="they listen on P, P+1, … (default: free ports)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="train PRESET [options]")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: must be at least 1.", USAGE)
    if options.port is not None and not 1024 <= options.port <= 65536 - options.workers:
        raise UserError(f"--port {options.port}: give 1024 to {65536 - options.workers}.", USAGE)
    if options.command[:1] != ["train"]:
        raise UserError(
            f"launch {' '.join(options.command[:1]) or 'nothing'}: only `train` runs in several processes; run the "
            "stages before and after it as they are.",
            USAGE,
        )
    return options


def ports(count: int, first: int | None = None) -> list[int]:
    """`count` ports of the loopback device: from `first` on, or such as are free now."""
    if first is not None:
        return list(range(first, first + count))
    return child.free_ports(count)


def environment(addresses: list[str], index: int) -> dict[str, str]:
    """Worker `index`'s place in the cluster and its share of the processors, unless the user has set one."""
    share = max(1, len(os.sched_getaffinity(0)) // len(addresses))
    cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    defaults = {"TF_NUM_INTRAOP_THREADS": str(share), "OMP_NUM_THREADS": str(share), "PYTHONUNBUFFERED": "1"}
    return {**defaults, **os.environ, "TF_CONFIG": json.dumps(cluster)}


async def _run(words: list[str], environments: list[dict[str, str]]) -> None:
    workers = [
        # A session of its own: Ctrl-C reaches it through this process only, and once.
        await create_subprocess_exec(*words, env=each, stdout=PIPE, stderr=PIPE, limit=LINE, start_new_session=True)
        for each in environments
    ]
    stopped: list[signal.Signals] = []

    def forward(number: signal.Signals) -> None:
        stopped.append(number)
        for worker in workers:
            _send(worker, number)

    for number in STOPS:
        asyncio.get_running_loop().add_signal_handler(number, forward, number)
    async with asyncio.TaskGroup() as pumps:
        for index, worker in enumerate(workers):
            assert worker.stdout is not None
            assert worker.stderr is not None
            pumps.create_task(_pump(worker.stdout, sys.stdout, index))
            pumps.create_task(_pump(worker.stderr, sys.stderr, index))
        failed = await _first_failure(workers)
        if failed is not None:
            await _end(workers)
    if stopped:
        code = 128 + stopped[0]
        raise UserError(f"stopped by {stopped[0].name}; the same command goes on from the last checkpoint.", code)
    if failed is not None:
        how, code = _ending(workers[failed].returncode or 0)
        raise UserError(f"worker {failed} {how}; its lines begin with [{failed}].", code)


async def _pump(source: asyncio.StreamReader, sink: TextIO, index: int) -> None:
    while True:
        try:
            line = await source.readline()
        except ValueError:  # longer than LINE: left out
            continue
        if not line:
            return
        print(f"[{index}] {line.decode(errors='replace').rstrip()}", file=sink, flush=True)


async def _first_failure(workers: list[Process]) -> int | None:
    """The number of the first worker that ended with an error; None when all have ended well."""
    waiting = {asyncio.create_task(worker.wait()): index for index, worker in enumerate(workers)}
    while waiting:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(done, key=lambda task: waiting[task]):
            index = waiting.pop(task)
            if task.result() != 0:
                return index
    return None


async def _end(workers: list[Process]) -> None:
    """Lets the others say why they end too, then tells them to end, then ends them."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        for worker in workers:
            if number is not None:
                _send(worker, number)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(worker.wait() for worker in workers)), GRACE)


def _send(worker: Process, number: signal.Signals) -> None:
    if worker.returncode is None:
        with suppress(ProcessLookupError):
            worker.send_signal(number)


def _ending(code: int) -> tuple[str, int]:
    """How a worker ended, in words, and the exit code that stands for it (as in a shell: 128 + signal)."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}", 128 - code
    if code == UNAVAILABLE:
        return "lost another worker", code
    return f"ended with exit code {code}", code
