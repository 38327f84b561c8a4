"""Claim: on one connection an answer comes less than a millisecond later than the model's own computing takes.

    python benchmarks/serving/latency.py [--quick] [--seconds 5] [--rounds 3]

Milliseconds a request, at the client (wrk for REST, h2load for gRPC, each with one request in flight), less what the
same SavedModel takes in a process of its own on the server's core: the quickest way in which Python calls it, a session
with a ready callable. The factorisation of ratings.py, one user and item a request. --quick: 2 seconds, once, and
without the empty servers, about 30 s.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

import exports
import inprocess
import load
import peers
from machine import free_ports, running, serving
from report import bar, heading, table

BARS = {"REST": 0.6, "gRPC": 0.8}  # milliseconds added at the median
HEADS = ("", "p50, ms", "p99, ms", "added p50, ms", "added p99, ms", "server µs a request", "failed", "bar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seconds, once, without the empty servers")
    parser.add_argument("--seconds", type=float, default=5, help="of one run (5)")
    parser.add_argument("--rounds", type=int, default=3, help="turns; medians are compared (3)")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 2, 1
    heading("Latency that serving adds, one connection")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        pairs, ratings = exports.ratings(folder)
        way, bodies = peers.OURS.ways[0], peers.OURS.ways[0].bodies(pairs)
        process, rest, rpc = stack.enter_context(serving(folder))
        process.wait_for(lambda: way.right(rest, pairs, ratings) and bool(peers.rpc_answer(rpc, pairs, ratings)))
        message, answer = peers.message(*pairs[0]), peers.rpc_answer(rpc, pairs, ratings)
        assert answer
        runs = {
            "REST": lambda: load.rest(process, f"http://{rest}{way.path}", bodies, 1, options.seconds),
            "gRPC": lambda: load.rpc(process, rpc, message, answer, 1, options.seconds),
        }
        if not options.quick:
            runs |= _empty(stack, folder, message, answer, bodies, options.seconds)
        alone, loads = [], {kind: [] for kind in runs}
        for run in runs.values():
            run()  # warms up
        for _ in range(options.rounds):
            alone.append(_alone(folder / "ratings/1", pairs, options.seconds / 2))
            for kind, run in runs.items():
                loads[kind].append(run())
    p50, p99 = (statistics.median(times) for times in zip(*alone, strict=True))
    rows = [["in the process", p50, p99, "", "", "", "", ""]]
    for kind, turns in loads.items():
        of = load.median(turns)
        verdict = load.judged(bar(of.p50 - p50, most=BARS[kind]), of) if kind in BARS else ""
        rows.append([kind, of.p50, of.p99, of.p50 - p50, of.p99 - p99, of.microseconds, of.failed, verdict])
    table(HEADS, rows)


def _alone(model: Path, pairs: peers.Pairs, seconds: float) -> tuple[float, float]:
    """p50 and p99 of the call without a server, milliseconds."""
    users, items = zip(*pairs, strict=True)
    calls = inprocess.times(model, {"user_id": users, "item_id": items}, [1], seconds)[1]
    milliseconds = sorted(1e3 * wall for wall, _ in calls)
    return statistics.median(milliseconds), milliseconds[int(0.99 * len(milliseconds))]


def _empty(stack, folder: Path, message: bytes, answer: bytes, bodies: list[bytes], seconds: float) -> dict:
    """The empty servers: how little any answer of such a server can take."""
    port = free_ports(1)[0]
    rest = stack.enter_context(
        running("uvicorn echo", [sys.executable, peers.ANSWERING / "echo_rest.py", port], folder)
    )
    rest.wait_for(lambda: bool(peers.post(f"http://127.0.0.1:{port}/", bodies[0])))
    rpc = stack.enter_context(peers.empty_rpc("uvloop", message, answer, folder))
    return {
        "REST, uvicorn echo": lambda: load.rest(rest, f"http://127.0.0.1:{port}/", bodies, 1, seconds),
        "gRPC, grpc.aio echo": lambda: load.rpc(*rpc, message, answer, 1, seconds),
    }


if __name__ == "__main__":
    main()
