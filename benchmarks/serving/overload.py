"""Claim: a server asked for ten times what it can do still does nine tenths of what it can, in time, and recovers.

    python benchmarks/serving/overload.py [--quick] [--seconds 20] [--times 10]

A model that takes about 10 ms an example and gains nothing from batches; gRPC, open loop: requests come at their pace
however long the answers take. Two ways to stay in time, each a server of its own:

    queue      --max_queued_requests: what the queue has no room for is refused at once; no deadlines
    deadline   no bound; every request has a deadline of the target, and none is computed after it

Capacity is what two clients in a closed loop get, and the target the time of 20 examples at that pace. Goodput counts
the right answers that came within twice the target; recovery is the time from the end of the overload until answers
again take less than twice as long as at rest. --quick: 5 seconds of overload, about 45 s.
"""

import argparse
import statistics
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import exports
import inprocess
import load
import messages
import open_loop
from machine import Process, serving
from report import bar, heading, table

EXAMPLE_MS, QUEUE, TARGET, PATIENCE_MS, LATE_MS = 10, 16, 20, 10_000, 20
REST_SECONDS = 4  # before and after the overload, at a tenth of the capacity
GOODPUT_BAR, RECOVERY_BAR, GROWTH_BAR = 0.9, 2.0, 1.1  # of capacity; seconds; times the memory before
WAYS = {"queue": ("--max_queued_requests", str(QUEUE)), "deadline": ()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 seconds")
    parser.add_argument("--seconds", type=float, default=20, help="of overload (20)")
    parser.add_argument("--times", type=float, default=10, help="the capacity that are asked for (10)")
    options = parser.parse_args()
    seconds = 5 if options.quick else options.seconds
    heading(f"{options.times:g} times the capacity for {seconds:g} s, open loop")
    with tempfile.TemporaryDirectory() as trial:
        loops = _loops(Path(trial))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exports.slow(folder, loops)
        for way, flags in WAYS.items():
            with serving(folder, *flags) as (process, _, rpc):
                _overload(way, process, rpc, options.times, seconds)


def _overload(way: str, process: Process, rpc: str, times: float, seconds: float) -> None:
    message = messages.request("slow", x=[3])
    process.wait_for(lambda: messages.values(messages.answer(rpc, message), "y") == [6])
    answer = messages.answer(rpc, message).SerializeToString()
    load.rpc(process, rpc, message, answer, 2, 2)  # warms up
    capacity = load.rpc(process, rpc, message, answer, 2, 4)
    light, target_ms = capacity.rate / 10, TARGET * 1e3 / capacity.rate
    deadline_ms = target_ms if way == "deadline" else PATIENCE_MS
    before = process.memory()
    with _Watch(process.memory) as memory, load.metered(process) as spent:
        phases = [(light, REST_SECONDS), (times * capacity.rate, seconds), (light, REST_SECONDS)]
        busy, (resting, told, after) = open_loop.run(rpc, deadline_ms, phases)
    cost = 1e6 * spent().server * spent().seconds / len(told)
    rest = statistics.median(one.seconds for one in resting)
    recovery = max((one.due for one in after if one.status != "OK" or one.seconds > 2 * rest + 0.005), default=0.0)

    statuses = Counter(one.status for one in told)
    accepted = sorted(1e3 * one.seconds for one in told if one.status == "OK")
    good = sum(milliseconds <= 2 * target_ms for milliseconds in accepted)
    p99 = accepted[int(0.99 * (len(accepted) - 1))] if accepted else float("inf")
    share = good / seconds / capacity.rate
    late = 1e3 * sorted(one.late for one in told)[int(0.99 * (len(told) - 1))]
    print(f"{way}: capacity {capacity.rate:.0f}/s, target {target_ms:.0f} ms; {len(told)} answers: {dict(statuses)};")
    print(f"server µs a request {cost:.0f}, client's core {busy:.0%}, sent late by {late:.1f} ms (p99)\n")
    void = "void: client late" if late > LATE_MS else "void: client saturated" if busy > load.SATURATED else ""
    most, wrong, note = max(memory.seen), statuses["WRONG"], load.disturbed(spent())
    rows = [
        ("goodput, of capacity", f"{share:.1%}", void or bar(share, GOODPUT_BAR) + note),
        ("p99 of accepted, ms", p99, void or bar(p99, most=2 * target_ms) + note),
        ("wrong answers", wrong, bar(wrong, most=0)),
        (f"most memory, MiB, {before:.0f} before", most, bar(most / before, most=GROWTH_BAR)),
        ("recovered after, s", recovery, void or bar(recovery, most=RECOVERY_BAR) + note),
    ]
    table(("measure", "value", "bar"), rows)


class _Watch:
    """Reads a number ten times a second while a block runs."""

    def __init__(self, read: Callable[[], float]):
        self.seen, self._read, self._done = [read()], read, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.1):
            self.seen.append(self._read())


def _loops(folder: Path) -> int:
    """How many products make an example of the model take about EXAMPLE_MS on the server's core."""
    loops = 100
    exports.slow(folder, loops)
    calls = inprocess.times(folder / "slow/1", {"x": [1.0, 2.0]}, [1], 2)[1]
    return max(1, round(loops * EXAMPLE_MS / 1e3 / statistics.median(cpu for _, cpu in calls)))


if __name__ == "__main__":
    main()
