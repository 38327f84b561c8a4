"""Claim: models come and go under load without a failed request, and without a trace in the server.

    python benchmarks/serving/reloads.py [--quick] [--cycles 20]

A cycle pushes a new version, waits until it answers, rolls back, and waits until the old one answers and the new one
is unloaded. Meanwhile four threads ask by REST and gRPC without a pause; every answer must be 200/OK and come from one
version as a whole (its rows, its sums, and the version that gRPC names). Memory, threads and files are those of the
server process after each cycle; the first cycles warm up. --quick: 4 cycles.
"""

import argparse
import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import exports
import peers
import steady
from machine import serving
from report import bar, heading, table

from pipeline import manifest
from pipeline.release import live, push, rollout

THREADS, LEAST_ASKED, PATIENCE, PAUSE = 4, 10_000, 60, 0.5
WARM = 5  # cycles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 cycles")
    parser.add_argument("--cycles", type=int, default=20)
    options = parser.parse_args()
    cycles = 4 if options.quick else options.cycles
    heading(f"{cycles} times push and rollback under load")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = [_export(folder / "exports" / str(version), version) for version in range(1, cycles + 2)]
        root = folder / "serving"
        _push(made[0], root / "numbered")
        with serving(root) as (process, rest, rpc):
            process.wait_for(lambda: _version(rest) == 1)
            spent, measures = [], []
            with steady.asking(rest, rpc, THREADS, (cycles + 1) * PATIENCE) as told:
                for version, export in enumerate(made[1:], 2):
                    spent.append(_cycle(export, version, root / "numbered", rest))
                    measures.append((process.memory(), process.threads(), process.files()))
    _report(told, *zip(*spent, strict=True), measures)


def _cycle(export: Path, version: int, root: Path, rest: str) -> tuple[float, float]:
    """Seconds from a push until the version answers, and from a rollback until version 1 does."""
    pushed = _seconds(lambda: _push(export, root), lambda: _version(rest) == version)
    time.sleep(PAUSE)
    back = _seconds(lambda: rollout.rollback(root), lambda: _version(rest) == 1)
    _wait(lambda: _state(rest, version) in ("END", "gone"))
    time.sleep(PAUSE)
    return pushed, back


def _report(told: dict, pushed: Sequence[float], back: Sequence[float], measures: list[tuple[float, int, int]]) -> None:
    print(f"answers a version: {told['versions']}; wrong: {told['wrong'] or 'none'}\n")
    rows = [
        ("failed or mixed, of requests", f"{told['failed']} of {told['asked']:,}", bar(told["failed"], most=0)),
        ("requests", told["asked"], bar(told["asked"], LEAST_ASKED)),
        ("p50, p99, longest, ms", " ".join(f"{told[key]:.3g}" for key in ("p50", "p99", "longest")), ""),
        ("push until it answers, s: median, longest", f"{statistics.median(pushed):.2f}, {max(pushed):.2f}", ""),
        ("rollback until it answers, s: median, longest", f"{statistics.median(back):.2f}, {max(back):.2f}", ""),
    ]
    for name, values, slack in zip(
        ("memory, MiB", "threads", "files"), zip(*measures, strict=True), (1.1, 1, 1), strict=True
    ):
        warm = values[min(WARM, len(values) - 1) :]
        series = " ".join(f"{value:.0f}" for value in values)
        last, first = statistics.median(warm[-3:]), max(warm[:3])
        rows.append((f"{name} after each cycle", series, bar(last / first, most=slack)))
    table(("measure", "value", "bar"), rows)


def _export(path: Path, version: int) -> Path:
    with manifest.committing(path) as draft:
        exports.numbered(draft.path, version)
    return path


def _push(export: Path, root: Path) -> None:
    with live.locked(root):
        before = live.current(root)
        live.adopt(root)
        version = int(push.push(export, root, {}).name)
        live.commit(root, "push", before, live.Live(version, before and before.stable), "reloads.py")


def _version(rest: str) -> int:
    answer = peers.post(f"http://{rest}/v1/models/numbered:predict", b'{"instances": [1.0]}')
    return int(answer["predictions"][0]["version"])


def _state(rest: str, version: int) -> str:
    with urllib.request.urlopen(f"http://{rest}/v1/models/numbered", timeout=30) as answer:
        states = {int(one["version"]): one["state"] for one in json.load(answer)["model_version_status"]}
    return states.get(version, "gone")


def _seconds(act: Callable[[], object], until: Callable[[], bool]) -> float:
    start = time.perf_counter()
    act()
    _wait(until)
    return time.perf_counter() - start


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server did not follow within {PATIENCE} s")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
