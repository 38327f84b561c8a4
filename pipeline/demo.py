"""`make run`: the three sample presets from raw data to a served model, with the commands a user would type."""

import json
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

from pipeline import runs
from pipeline.console import quieten
from pipeline.errors import REFUSED, UNAVAILABLE, Parser, UserError
from pipeline.presets import preset_of
from pipeline.release import child

SAMPLES = ("digits-sample", "reviews-sample", "ratings-sample")
# One epoch at a learning rate too small to learn anything: a candidate that must not go live.
BAD = ("digits-sample", "--run.name", "digits-bad", "--train.epochs", "1", "--optimizer.learning-rate", "1e-9")
HEADLINE = {"image": "accuracy", "sentiment": "accuracy", "recommendation": "rmse"}
START_SECONDS = 90


def main(arguments: list[str]) -> None:
    parser = Parser("minibatch demo", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("."), help="folder for records/, runs/ and exports/")
    parser.add_argument("--fresh", action="store_true", help="train anew beside the runs that are there")
    given = parser.parse_args(arguments)
    root: Path = given.root
    options = ("--run.root", str(root), *(["--fresh"] if given.fresh else []))
    started = time.perf_counter()
    for preset in SAMPLES:
        command("run", preset, *options)
    print("\nA deliberately bad candidate for the model `digits`, which the gate must refuse:", flush=True)
    command("run", *BAD, *options, expect=REFUSED)
    serve_and_ask(root)
    print(f"\n{'preset':<16}{'test metric':<22}{'95% interval':<20}report")
    for preset in SAMPLES:
        print(summary(preset, root))
    print(
        f"\nAll of it in {time.perf_counter() - started:.0f} s. Serve it again: minibatch serve --serving_root "
        f"{root / 'exports'}"
    )


def command(*words: str, expect: int = 0) -> None:
    """Runs one `minibatch` command in sight of the user. Raises UserError for another exit code than expected."""
    print(f"\n$ minibatch {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "pipeline", *words]).returncode
    if code != expect:
        raise UserError(
            f"`minibatch {' '.join(words)}` ended with exit code {code} instead of {expect}; see above.", code or 1
        )


def serve_and_ask(root: Path) -> None:
    """Starts the embedded server on the pushed models, asks each model over REST and over gRPC, and stops it."""
    rest, grpc = child.free_ports(2)
    words = ["serve", "--serving_root", str(root / "exports"), "--rest_api_port", str(rest), "--port", str(grpc)]
    print(f"\n$ minibatch {' '.join(words)} &", flush=True)
    server = child.start(words)
    try:
        await_model(server, rest, [preset_of(name).run.model for name in SAMPLES])
        for protocol, port in (("rest", rest), ("grpc", grpc)):
            for question in questions(root):
                command("predict", *question, "--protocol", protocol, "--address", f"127.0.0.1:{port}")
    finally:
        child.stop(server)


def questions(root: Path) -> list[tuple[str, ...]]:
    """Words for `minibatch predict`, one list a question; the image is a test row written to a file."""
    quieten(tensorflow=True)
    from pipeline import records

    run_dir = newest("digits-sample", root)
    rows = records.load(Path(json.loads((run_dir / "config.json").read_text())["records"]), "test", "image")
    image = root / "runs" / f"digit-{rows['label'][0].decode()}.png"
    image.write_bytes(rows["image_bytes"][0])
    return [
        ("digits", "--image", str(image)),
        ("reviews", "--text", "A warm, funny and beautifully acted film.", "A dull, lifeless mess."),
        ("ratings", "--user", "196", "--item", "242"),
        ("ratings", "--user", "196"),
    ]


def summary(preset: str, root: Path) -> str:
    run_dir, config = newest(preset, root), preset_of(preset)
    evaluation, metric = json.loads((run_dir / "evaluation.json").read_text()), HEADLINE[config.task]
    low, high = evaluation["intervals"][metric]
    value = f"{metric} {evaluation['metrics'][metric]:.4f}"
    return f"{preset:<16}{value:<22}{f'{low:.4f} to {high:.4f}':<20}{run_dir / 'report.html'}"


def newest(preset: str, root: Path) -> Path:
    run = preset_of(preset).run
    return runs.existing_run(replace(preset_of(preset), run=replace(run, root=root)))


def await_model(server: subprocess.Popen, port: int, models: list[str]) -> None:
    """Returns when every model is AVAILABLE over REST; UserError when the server ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if all(available(port, model) for model in models):
            return
        time.sleep(0.3)
    raise UserError(
        "The server ended early; see its lines above."
        if server.poll() is not None
        else f"The server did not load {', '.join(models)} within {START_SECONDS} s.",
        UNAVAILABLE,
    )


def available(port: int, model: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models/{model}", timeout=5) as answer:
            return '"AVAILABLE"' in answer.read().decode()
    except (urllib.error.URLError, OSError):
        return False
