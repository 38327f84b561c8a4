"""Claim: one rating a request is served several times as fast as by FastAPI, BentoML or LitServe with the same model,
and at a good part of what a server does that computes nothing.

    python benchmarks/serving/ratings.py [--quick] [--peers PYTHON] [--seconds 4] [--rounds 3]

A factorisation of 943 users and 1,682 items with 16 factors, as the project exports it. Each server has one core, the
load (wrk, h2load) the other. Ours has --enable_batching. Of a peer's ways (async def, def, batching) the fastest at 16
connections counts.
--quick, about 45 s: ours, the two empty servers and FastAPI with the signature, once each.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path

import exports
import load
import peers
from machine import serving
from report import bar, heading, table

# Of what a peer does, ours must do this many times as much, at so many connections.
BARS = {
    (peers.SIGNATURE, 16): 6,
    (peers.PREDICT, 16): 200,
    (peers.BENTOML, 16): 1,
    (peers.LITSERVE, 16): 1,
    (peers.ECHO, 16): 0.25,
    (peers.ECHO, 64): 0.45,
}
STREAMS, RPC_BAR = 16, 0.7
HEADS = ("peer", "asked", "requests/s", "failed", "server µs a request", "server's core", "client's core", "others",
         "ours, of this", "by server µs", "bar")  # fmt: skip


def rest(options, models: Path, pairs, ratings) -> None:
    wanted = [peers.OURS, peers.ECHO, peers.SIGNATURE, peers.PREDICT, peers.BENTOML, peers.LITSERVE]
    if options.quick:
        wanted = wanted[:3]
    have = peers.versions(options.peers, sorted({package for peer in wanted for package in peer.packages}))
    present = [peer for peer in wanted if all(package in have for package in peer.packages)]
    for peer in wanted:
        if peer not in present:
            print(f"**{peer.name} is missing**: {options.peers} lacks it (see --peers)\n")
    print("Peers: " + ", ".join(f"{name} {number}" for name, number in have.items()) + "\n")

    with peers.started(present, options.peers, models, pairs, ratings) as servers:

        def run(peer, way, connections, seconds):
            process, address = servers[peer.name]
            return load.rest(process, f"http://{address}{way.path}", way.bodies(pairs), connections, seconds)

        def medians(ways, connections):
            loads: dict = {key: [] for key in ways}
            for _ in range(options.rounds):
                for key in ways:
                    loads[key].append(run(*key, connections, options.seconds))
            return {key: load.median(runs) for key, runs in loads.items()}

        ways = [(peer, way) for peer in present for way in peer.ways]
        for key in ways:
            run(*key, 16, 1)  # warms up
        found = medians(ways, 16)
        best = {peer: max(peer.ways, key=lambda way, peer=peer: found[peer, way].rate) for peer in present}
        _print(16, {peer: (best[peer], found[peer, best[peer]]) for peer in present})
        found = medians(best.items(), 64)
        _print(64, {peer: (way, found[peer, way]) for peer, way in best.items()})


def _print(connections: int, found: dict[peers.Peer, tuple[peers.Way, load.Load]]) -> None:
    print(f"REST, {connections} connections\n")
    ours = found[peers.OURS][1]
    rows = [_row(peer.name, way.path, of, ours, BARS.get((peer, connections))) for peer, (way, of) in found.items()]
    table(HEADS, rows)


def rpc(options, models: Path, pairs: peers.Pairs, ratings: list[float]) -> None:
    message = peers.message(*pairs[0])
    with contextlib.ExitStack() as stack:
        process, _, address = stack.enter_context(serving(models, "--enable_batching"))
        process.wait_for(lambda: bool(peers.rpc_answer(address, pairs, ratings)))
        answer = peers.rpc_answer(address, pairs, ratings)
        assert answer
        servers = {"ours": (process, address)}
        for loop in ("uvloop", "asyncio"):
            servers[f"grpc.aio echo, {loop}"] = stack.enter_context(peers.empty_rpc(loop, message, answer, models))
        loads: dict = {name: [] for name in servers}
        for rounds, seconds in ((1, 2), (options.rounds, options.seconds)):  # the first warms up
            for name, server in list(servers.items()) * rounds:
                loads[name].append(load.rpc(*server, message, answer, STREAMS, seconds))
    medians = {name: load.median(runs[1:]) for name, runs in loads.items()}
    print(f"gRPC, one connection of {STREAMS} streams; a request has {len(message)} bytes\n")
    table(HEADS, [_row(name, "Predict", of, medians["ours"], RPC_BAR) for name, of in medians.items()])


def _row(name: str, asked: str, of: load.Load, ours: load.Load, least: float | None) -> list:
    ratio, shares = ours.rate / of.rate, (of.spent.server, of.spent.client, of.spent.others)
    verdict = "" if least is None or of is ours else load.judged(bar(ratio, least), of, ours)
    return [name, asked, of.rate, of.failed, of.microseconds, *(f"{share:.0%}" for share in shares), ratio,
            of.microseconds / ours.microseconds, verdict]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ours, the empty servers and FastAPI, once")
    parser.add_argument("--seconds", type=float, default=4, help="of one run (4)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each peer; medians are compared (3)")
    peers.add_option(parser)
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 2, 1
    heading("One rating a request")
    with tempfile.TemporaryDirectory() as folder:
        pairs, ratings = exports.ratings(Path(folder))
        rest(options, Path(folder), pairs, ratings)
        rpc(options, Path(folder), pairs, ratings)


if __name__ == "__main__":
    main()
