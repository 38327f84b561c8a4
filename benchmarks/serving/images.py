"""Claim: a CNN on JPEG bytes is served at nearly the pace at which its SavedModel computes full batches.

    python benchmarks/serving/images.py [--quick] [--seconds 5] [--rounds 3]

The networks of two presets, one JPEG of 32x32 pixels a request, 64 requests in flight, batching on. The limit is the
same SavedModel in a process of its own on the server's core, called with batches of the best of several sizes. REST
carries the bytes as base64. What a request costs beside the network is much the same for both, so the smaller network
shows it more. --quick: one network, 3 seconds, once, about a minute.
"""

import argparse
import base64
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import exports
import inprocess
import load
import messages
import peers
from machine import Process, serving
from report import bar, heading, table

from pipeline.presets.image import cifar10, cifar10_fast

NETWORKS = {"cifar10-fast": cifar10_fast().model, "cifar10": cifar10().model}
IN_FLIGHT, SIZES, BARS = 64, (1, 8, 16, 32, 64), {"REST": 0.7, "gRPC": 0.85}
BATCHING = f"max_batch_size {{ value: {IN_FLIGHT} }}"
HEADS = ("", "examples/s", "failed", "server µs an example", "server's core", "client's core", "others",
         "of the limit", "by server µs", "bar")  # fmt: skip


@dataclass(frozen=True)
class Requests:
    """The same images for REST and for gRPC, and the scores that are right for them."""

    model: str
    files: list[bytes]
    scores: list[list[float]]

    def bodies(self) -> list[bytes]:
        rows = ([{"b64": base64.b64encode(file).decode()}] for file in self.files)
        return [json.dumps({"instances": row}).encode() for row in rows]

    def message(self) -> bytes:
        return messages.request(self.model, image_bytes=[self.files[0]])

    def url(self, rest: str) -> str:
        return f"http://{rest}/v1/models/{self.model}:predict"

    def right(self, rest: str, rpc: str) -> bool:
        """Whether a server answers both ways, and rightly."""
        told = peers.post(self.url(rest), self.bodies()[1])["predictions"][0]["scores"]
        return _near(told, self.scores[1]) and _near(
            messages.values(messages.answer(rpc, self.message()), "scores"), self.scores[0]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one network, 3 seconds, once")
    parser.add_argument("--seconds", type=float, default=5, help="of one run (5)")
    parser.add_argument("--rounds", type=int, default=3, help="turns; medians are compared (3)")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 3, 1
    heading(f"A CNN on JPEG bytes, {IN_FLIGHT} in flight, {BATCHING}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = folder / "batching_parameters.txt"
        parameters.write_text(BATCHING)
        asked = [
            Requests(model, *exports.images(folder / model / "1", network))
            for model, network in list(NETWORKS.items())[: 1 if options.quick else None]
        ]
        batching = ("--enable_batching", f"--batching_parameters_file={parameters}")
        with serving(folder, *batching) as on, serving(folder) as off:
            for requests in asked:
                print(f"{requests.model}, JPEG files of {len(requests.files[0])} bytes\n")
                table(HEADS, _measured(requests, on, off, folder / requests.model / "1", options))


def _measured(
    requests: Requests, on: tuple[Process, str, str], off: tuple[Process, str, str], model: Path, options
) -> list[list]:
    bodies, message, seconds = requests.bodies(), requests.message(), options.seconds
    runs = {}
    for name, (process, rest, rpc) in (("", on), (", batching off", off)):
        process.wait_for(lambda rest=rest, rpc=rpc: requests.right(rest, rpc))
        answer = messages.answer(rpc, message).SerializeToString()
        of_rest = (process, requests.url(rest), bodies, IN_FLIGHT, seconds)
        of_rpc = (process, rpc, message, answer, IN_FLIGHT, seconds)
        runs[f"REST{name}"] = lambda of_rest=of_rest: load.rest(*of_rest)
        runs[f"gRPC{name}"] = lambda of_rpc=of_rpc: load.rpc(*of_rpc)
    for run in runs.values():
        run()  # warms up
    limits: list = []
    loads: dict = {kind: [] for kind in runs}
    for _ in range(options.rounds):
        limits.append(_limit(model, requests.files, seconds))
        for kind, run in runs.items():
            loads[kind].append(run())
    limit, cost, size = sorted(limits)[len(limits) // 2]
    rows = [[f"in the process, {size} at a time", limit, "", cost, "", "", "", "", "", ""]]
    for kind, turns in loads.items():
        of = load.median(turns)
        shares = (f"{share:.0%}" for share in (of.spent.server, of.spent.client, of.spent.others))
        verdict = load.judged(bar(of.rate / limit, BARS[kind]), of) if kind in BARS else ""
        ratios = of.rate / limit, cost / of.microseconds
        rows.append([kind, of.rate, of.failed, of.microseconds, *shares, *ratios, verdict])
    return rows


def _limit(model: Path, files: list[bytes], seconds: float) -> tuple[float, float, int]:
    """Examples a second and CPU microseconds an example at the best size of a batch, and that size."""
    calls = inprocess.times(model, {"image_bytes": [file.decode("latin-1") for file in files]}, SIZES, seconds)
    costs = []
    for size, spent in calls.items():
        wall, cpu = (sum(column) / len(spent) / size for column in zip(*spent, strict=True))
        costs.append((cpu, wall, size))
    cpu, wall, size = min(costs)
    return 1 / wall, cpu * 1e6, size


def _near(told: list[float], right: list[float]) -> bool:
    return all(abs(a - b) < 1e-3 for a, b in zip(told, right, strict=True))


if __name__ == "__main__":
    main()
