"""Infrastructure validation: can the server that will serve this export load it, and does it answer as at export?

The embedded server is booted on the export alone, in a child process, and asked over REST and gRPC with the warm-up
requests, whose answers were written beside them when the model was still in memory. validation.json in the run holds
what was found; a validation of the same export is not repeated.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from pipeline import manifest, runs
from pipeline.config import Config, Push
from pipeline.errors import Refused
from pipeline.release import child
from pipeline.release.evaluate import load_export
from serving.client import Client, ServingError

NAME = "validation.json"
WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"
VERSION = 1  # of the export, to the server that is booted on it
START_SECONDS = 120.0
TOLERANCE = 1e-5  # of a number, relative or absolute: the server may run other batch sizes
CALLS, SECONDS = 200, 1.0  # timed calls a protocol, whichever comes first
PROTOCOLS: tuple[Literal["rest"], Literal["grpc"]] = ("rest", "grpc")


@dataclass(frozen=True)
class Question:
    signature: str
    inputs: dict[str, np.ndarray]
    answers: dict[str, np.ndarray]

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


def validate(run_dir: Path, config: Config, again: bool = False) -> dict[str, Any]:
    """Boots, asks, compares and measures; returns what was found and writes it to validation.json.

    Raises Refused naming the protocol, signature and output that differ, or the bound of `config.push` that is
    exceeded, and UserError when there is no export.
    """
    run_dir, export = Path(run_dir), runs.exported(Path(run_dir))
    files = manifest.fingerprint(manifest.verify(export)["files"])
    with contextlib.suppress(FileNotFoundError, ValueError):
        known = json.loads((run_dir / NAME).read_bytes())
        if known["export"] == files and not again and not _too_much(known, config.push):
            return known
    with booted(export, config.run.model) as (server, addresses):
        found: dict[str, Any] = {"export": files, "signatures": [], "p50_ms": {}, "p99_ms": {}}
        asked = questions(export)
        for protocol in PROTOCOLS:
            with Client(addresses[protocol], protocol) as client:
                for question in asked:
                    if problem := compare(client, config.run.model, question):
                        raise Refused(f"{export}: served over {protocol.upper()}, {problem}")
                p50, p99 = _latency(client, config.run.model, min(asked, key=lambda q: q.rows))
                found["p50_ms"][protocol], found["p99_ms"][protocol] = p50, p99
        found["signatures"] = sorted({question.signature for question in asked})
        found["memory_mb"] = _memory(server.pid)
    if problem := _too_much(found, config.push):
        raise Refused(f"{export}: {problem}")
    manifest.write_file(run_dir / NAME, json.dumps(found, indent=1))
    return found


def questions(export: Path) -> list[Question]:
    """The warm-up requests with their answers, those of an older export from its signatures in this process. Raises
    Refused without any."""
    from tensorflow_serving.apis import prediction_log_pb2  # stubs only, but slow to import

    path = export / WARMUP
    found, loaded = [], None
    for record in tf.data.TFRecordDataset(str(path)) if path.is_file() else []:
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log
        name = log.request.model_spec.signature_name
        inputs = {k: tf.make_ndarray(v) for k, v in log.request.inputs.items()}
        answers = {k: tf.make_ndarray(v) for k, v in log.response.outputs.items()}
        if not answers:
            loaded = loaded or load_export(export)
            tensors = {k: tf.constant(v) for k, v in inputs.items()}
            answers = {k: v.numpy() for k, v in loaded.signatures[name](**tensors).items()}
        found.append(Question(name, inputs, answers))
    if not found:
        raise Refused(f"{export} has no {WARMUP} to ask the server with; export it again.")
    return found


@contextlib.contextmanager
def booted(export: Path, model: str) -> Iterator[tuple[subprocess.Popen, dict[str, str]]]:
    """The server with this export as its only model, and its addresses. Raises Refused when it does not come up."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / model
        base.mkdir()
        (base / str(VERSION)).symlink_to(export.resolve(), target_is_directory=True)
        ports = child.free_ports(len(PROTOCOLS))
        words = [f"--model_name={model}", f"--model_base_path={base}", "--bind=127.0.0.1"]
        words += [f"--rest_api_port={ports[0]}", f"--port={ports[1]}", "--max_num_load_retries=0"]
        log = Path(folder) / "log"
        with open(log, "wb") as output:
            server = child.start(
                ["serve", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        try:
            addresses = {p: f"127.0.0.1:{port}" for p, port in zip(PROTOCOLS, ports, strict=True)}
            _await(server, addresses["rest"], model, export, log)
            yield server, addresses
        finally:
            child.stop(server)


def compare(client: Client, model: str, question: Question) -> str:
    """What is wrong with the answer to `question`, naming signature, output and row; empty when nothing is."""
    try:
        found = client.predict(model, question.inputs, question.signature)
    except ServingError as error:
        return f"signature {question.signature} fails ({type(error).__name__}: {error})"
    if set(found) != set(question.answers):
        names = f"{', '.join(sorted(found))} instead of {', '.join(sorted(question.answers))}"
        return f"signature {question.signature} answers {names}"
    for output, expected in question.answers.items():
        if problem := _difference(found[output], expected):
            return f"signature {question.signature}, output {output}: {problem}"
    return ""


def _difference(found: np.ndarray, expected: np.ndarray) -> str:
    if found.shape != expected.shape:
        return f"shape {found.shape} instead of {expected.shape}"
    if expected.dtype.kind in "OSU":
        same = np.array([a == b for a, b in zip(found.flat, expected.flat, strict=True)], bool).reshape(expected.shape)
    elif found.dtype != expected.dtype:
        return f"{found.dtype} instead of {expected.dtype}"
    else:
        same = np.isclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    if same.all():
        return ""
    place = tuple(int(i) for i in np.argwhere(~same)[0])
    where = f"row {place[0]}" if place else "the value"
    values = f"{_shown(found[place])} instead of {_shown(expected[place])}"
    return f"{where} is {values} ({np.count_nonzero(~same)} values differ)"


def _shown(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, bytes | str) else str(value)


def _latency(client: Client, model: str, question: Question) -> tuple[float, float]:
    """Median and 99th percentile in milliseconds of one call after another, the smallest of the warm-up requests."""
    took: list[float] = []
    end = time.monotonic() + SECONDS
    while len(took) < CALLS and (time.monotonic() < end or not took):
        begin = time.perf_counter()
        client.predict(model, question.inputs, question.signature)
        took.append(1e3 * (time.perf_counter() - begin))
    p50, p99 = np.percentile(took, [50, 99])
    return round(float(p50), 3), round(float(p99), 3)


def _memory(process: int) -> float | None:
    """The most that the process ever held, in MB; None where the system does not tell."""
    with contextlib.suppress(FileNotFoundError):  # Linux alone has it
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return None


def _too_much(found: dict[str, Any], bounds: Push) -> str:
    slowest = max(found["p99_ms"], key=found["p99_ms"].__getitem__)
    measured = {
        "max_p99_ms": (found["p99_ms"][slowest], f"p99_ms over {slowest.upper()}"),
        "max_memory_mb": (found["memory_mb"], "memory_mb"),
    }
    for option, (value, name) in measured.items():
        bound, told = getattr(bounds, option), f"--push.{option.replace('_', '-')}"
        if bound is not None and value is None:
            return f"{name} cannot be measured on this system; leave {told} out"
        if bound is not None and value > bound:
            return f"{name} is {value:g}, above {told} {bound:g}"
    return ""


def _await(server: subprocess.Popen, address: str, model: str, export: Path, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with Client(address, timeout=5) as client:
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(ServingError):
                if all(version.state == "AVAILABLE" for version in client.status(model)):
                    return
            time.sleep(0.1)
    said = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    ended = "ended early" if server.poll() is not None else f"did not serve within {START_SECONDS:g} s"
    raise Refused(f"{export}: the server that was booted on it {ended}: {said}")
