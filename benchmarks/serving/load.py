"""Load from a second process on the other core: wrk for REST, h2load for gRPC, and what the server spent meanwhile."""

import contextlib
import json
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import LOAD_CORE, ROOT, SERVER_CORE, Process, busy_seconds

SATURATED = 0.9  # a client that keeps its core this busy may be what limits the run
DISTURBED = 0.1  # others that take this much of a core shift the figures
_PREDICT = "tensorflow.serving.PredictionService/Predict"


@dataclass(frozen=True)
class Spent:
    """CPU time during one run, as shares of one core; `others`: what neither was, on the worse of the two cores."""

    seconds: float
    server: float
    client: float
    others: float


@dataclass(frozen=True)
class Load:
    """One run. `rate` is answers a second, `p50` and `p99` are milliseconds."""

    rate: float
    failed: int
    microseconds: float
    """Server CPU time a request."""
    spent: Spent
    p50: float
    p99: float


def judged(verdict: str, *loads: Load) -> str:
    """The verdict on a bar; instead of it, why these runs say nothing; after it, what may have shifted it."""
    failed = sum(load.failed for load in loads)
    if failed or any(load.spent.client > SATURATED for load in loads):
        return f"void: {failed} failed" if failed else "void: client saturated"
    return verdict + disturbed(*(load.spent for load in loads))


def disturbed(*spent: Spent) -> str:
    """A note that others ran on the two cores; empty when they hardly did."""
    others = max(one.others for one in spent)
    return f", others took {others:.0%} of a core" if others > DISTURBED else ""


def missing_tools() -> list[str]:
    """What to install, by Debian's package name, before anything can be measured."""
    return [package for tool, package in (("wrk", "wrk"), ("h2load", "nghttp2-client")) if not shutil.which(tool)]


def rest(server: Process, url: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Load:
    """POSTs `bodies` in turn to `url` over `connections` that wait for each answer."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join(bodies))
        file.flush()
        script = str(ROOT / "benchmarks/serving/requests.lua")
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", script, url, "--"]
        text, spent = _run(server, [*command, file.name])
    told = json.loads(text.splitlines()[-1])
    done, rate = told["requests"], told["requests"] / told["seconds"]
    cost = 1e6 * spent.server * spent.seconds / max(1, done)
    return Load(rate, told["failed"], cost, spent, told["p50"], told["p99"])


def rpc(
    server: Process, address: str, message: bytes, answer: bytes, streams: int, seconds: float, connections: int = 1
) -> Load:
    """Predict with the one `message` on `streams` in all. h2load does not read the gRPC status, but one that is not OK
    comes without a message: as many answers as the data is short of (each as long as `answer`) count as failed."""
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "message", Path(folder) / "log"
        body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        command = ["h2load", f"-c{connections}", f"-m{streams // connections}", f"-D{seconds:.0f}", "-d", str(body)]
        headers = ["-H", "content-type: application/grpc", "-H", "te: trailers", f"--log-file={log}"]
        text, spent = _run(server, [*command, *headers, f"http://{address}/{_PREDICT}"])
        times = sorted(int(line.split("\t")[2]) / 1e3 for line in log.read_text().splitlines())
    done, failed, data = (int(_found(what, text)) for what in (r"(\d+) done", r"(\d+) failed", r"\((\d+)\) data"))
    failed = max(failed, done - data // (len(answer) + 5))
    p50, p99 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
    cost = 1e6 * spent.server * spent.seconds / max(1, done)
    return Load(float(_found(r"([\d.]+) req/s", text)), failed, cost, spent, p50, p99)


def median(loads: Sequence[Load]) -> Load:
    """Medians; failures add up, and of the client and of others the most counts."""
    middle = sorted(loads, key=lambda load: load.rate)[(len(loads) - 1) // 2]
    worst = (max(getattr(load.spent, who) for load in loads) for who in ("client", "others"))
    return Load(
        middle.rate,
        sum(load.failed for load in loads),
        statistics.median(load.microseconds for load in loads),
        Spent(middle.spent.seconds, middle.spent.server, *worst),
        statistics.median(load.p50 for load in loads),
        statistics.median(load.p99 for load in loads),
    )


def _run(server: Process, command: list[str]) -> tuple[str, Spent]:
    with metered(server) as spent:
        pinned = ["taskset", "-c", str(LOAD_CORE), *command]
        text = subprocess.run(pinned, capture_output=True, text=True, check=True).stdout
    return text, spent()


@contextlib.contextmanager
def metered(server: Process) -> Iterator[Callable[[], Spent]]:
    """Gives what the server, the processes started and ended here, and others spent while the block ran."""
    cores = {SERVER_CORE, LOAD_CORE}
    ours, client, busy = server.cpu_seconds(), _children_seconds(), {core: busy_seconds(core) for core in cores}
    start, ended = time.perf_counter(), []
    yield lambda: ended[0]
    wall, ours, client = time.perf_counter() - start, server.cpu_seconds() - ours, _children_seconds() - client
    mine = {SERVER_CORE: ours} | {LOAD_CORE: client + (ours if len(cores) == 1 else 0)}
    others = max(busy_seconds(core) - busy[core] - mine[core] for core in cores)
    ended.append(Spent(wall, ours / wall, client / wall, max(0.0, others / wall)))


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if not found:
        raise RuntimeError(f"h2load said nothing like {pattern!r}:\n{text}")
    return found.group(1)
