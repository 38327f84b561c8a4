"""Claims about `minibatch launch`: N processes as one command; the last ones train for real."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import arguments, launch, manifest
from pipeline.config import to_json
from pipeline.errors import CANNOT_WRITE, TERMINATED, UNAVAILABLE, USAGE, UserError
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, count: int = 2) -> None:
    """What `launch` does, with a script in place of the training; it finds its number in `me`."""
    head = "import json, os, signal, sys, time; me = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
    addresses = [f"127.0.0.1:{port}" for port in launch.ports(count)]
    environments = [launch.environment(addresses, i) for i in range(count)]
    asyncio.run(launch._run([sys.executable, "-S", "-c", head + script], environments))


@pytest.fixture(autouse=True)
def _in_short(monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.5)


def test_each_line_says_whose_it_is(capfd):
    run("print('a'); print('b', flush=True); print('c', file=sys.stderr)", 3)
    said = capfd.readouterr()
    assert sorted(said.out.splitlines()) == [f"[{i}] {text}" for i in range(3) for text in "ab"]
    assert sorted(said.err.splitlines()) == ["[0] c", "[1] c", "[2] c"]


def test_a_line_that_is_too_long_is_left_out_and_blocks_nobody(capfd, monkeypatch):
    monkeypatch.setattr(launch, "LINE", 1000)
    run("print('x' * 300_000); print('after')", 1)
    assert capfd.readouterr().out.splitlines()[-1] == "[0] after"


def test_workers_are_one_cluster_on_loopback_and_share_the_processors(monkeypatch):
    for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    first, second = (launch.environment(["127.0.0.1:1", "127.0.0.1:2"], i) for i in range(2))
    places = [json.loads(each["TF_CONFIG"]) for each in (first, second)]
    assert [place["task"] for place in places] == [{"type": "worker", "index": 0}, {"type": "worker", "index": 1}]
    assert places[0]["cluster"] == places[1]["cluster"] == {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}
    assert (first["TF_NUM_INTRAOP_THREADS"], first["OMP_NUM_THREADS"]) == ("3", "3")
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "5")
    assert launch.environment(["127.0.0.1:1"] * 9, 0)["TF_NUM_INTRAOP_THREADS"] == "5"
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    assert launch.environment(["127.0.0.1:1"] * 9, 0)["TF_NUM_INTRAOP_THREADS"] == "1"


@pytest.mark.parametrize(
    ("ending", "code", "how"),
    [
        ("sys.exit(7)", 7, "worker 1 ended with exit code 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "worker 1 was ended by SIGKILL"),
        (f"sys.exit({UNAVAILABLE})", UNAVAILABLE, "worker 1 lost another worker"),
    ],
)
def test_the_first_failure_ends_all_and_its_code_is_the_command_s(ending, code, how):
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    with pytest.raises(UserError, match=how) as raised:
        run(f"{ending} if me == 1 else exec({stubborn!r})")
    assert raised.value.code == code


def test_the_others_may_say_first_why_they_end(capfd):
    with pytest.raises(UserError, match="worker 1"):
        run("sys.exit(7) if me == 1 else (time.sleep(0.2), print('worker 1 is gone'), sys.exit(69))")
    assert capfd.readouterr().out == "[0] worker 1 is gone\n"


@pytest.mark.parametrize("number", launch.STOPS)
def test_a_signal_reaches_every_worker_once(number, capfd, tmp_path):
    script = (
        f"signal.signal({int(number)}, lambda *_: (print('told', flush=True), time.sleep(0.2), sys.exit(143)))\n"
        f"open({str(tmp_path)!r} + f'/{{me}}', 'w').close(); time.sleep(600)"
    )

    def tell():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=tell).start()
    with pytest.raises(UserError, match=f"stopped by {number.name}; the same command") as raised:
        run(script)
    assert raised.value.code == 128 + number
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] told", "[1] told"]


def test_a_worker_has_a_session_of_its_own_so_that_ctrl_c_reaches_it_through_launch_alone(capfd):
    run("print(os.getsid(0) == os.getpid())", 1)
    assert capfd.readouterr().out == "[0] True\n"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("", "required: --workers"),
        ("--workers two train imdb", "invalid int value: 'two'"),
        ("--workers 0 train imdb", "--workers 0: must be at least 1"),
        ("--workers 2 --port 80 train imdb", "--port 80: give 1024 to 65534"),
        ("--workers 2", "launch nothing: only `train`"),
        ("--workers 2 run imdb", "launch run: only `train`"),
        ("--workers 2 train idmb", "Unknown preset 'idmb'"),
        ("--workers 2 train imdb --train.bach-size 3", "Perhaps you meant --train.batch-size"),
        ("--worker 2 train imdb", "required: --workers"),
    ],
)
def test_a_wrong_command_is_one_line_and_starts_nothing(words, what, monkeypatch):
    monkeypatch.setattr(launch, "_run", lambda *_: pytest.fail("started"))
    with pytest.raises(UserError, match=what) as raised:
        launch.main(words.split())
    assert raised.value.code == USAGE


def test_ports_are_those_asked_for_or_different_free_ones():
    assert launch.ports(3, 5000) == [5000, 5001, 5002]
    assert len(set(launch.ports(20))) == 20


def test_help_needs_no_tensorflow():
    code = (
        "import sys\nfrom pipeline.__main__ import main\ntry: main(['launch', '--help'])\n"
        "except SystemExit as end: sys.exit(end.code or 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: minibatch launch --workers N")


# From here on it trains.

PRESETS = {"recommendation": "ratings-sample", "image": "digits-sample"}
SHORT = {
    "recommendation": "--model.factors 4",
    "image": "--model.height 8 --model.width 8 --model.channels 3 --model.filters 4 8 --model.no-batch-norm "
    "--model.dropout 0 --model.no-flip --model.crop 0",
}


def committed(task: str, root: Path) -> None:
    """Tiny records where `minibatch train` with --run.root looks for them."""
    config = arguments.parse("train", [PRESETS[task], "--run.root", str(root)])[1]
    made = tiny.records_dir(task, root / "made")
    described = manifest.read(made)
    with manifest.committing(config.records_root / "fedcba9876543210") as draft:
        for path in made.iterdir():
            if path.name != manifest.NAME:
                (draft.path / path.name).write_bytes(path.read_bytes())
        draft.rows.update({name: file["rows"] for name, file in described["files"].items() if "rows" in file})
        draft.facts["key"] = {"task": task, "settings": {"data": to_json(config.data)}}


def words(task: str, root: Path, name: str, epochs: int) -> list[str]:
    return [
        *("train", PRESETS[task], "--run.root", str(root), "--run.name", name, *SHORT[task].split()),
        *["--train.batch-size", "16", "--train.no-tensorboard", "--train.plan", "given", "--train.steps-per-call", "2"],
        *("--train.epochs", str(epochs), "--train.patience", str(epochs), "--train.precision", "float32"),
    ]


def by_launch(command: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "launch", "--workers", "2", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def worker(command: list[str], addresses: list[str], i: int) -> subprocess.Popen:
    """Process i of a cluster, without `launch`."""
    return subprocess.Popen(
        [*command, "--train.strategy", "multi_worker"], cwd=ROOT, text=True,
        env=launch.environment(addresses, i), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def losses(root: Path, name: str) -> list[tuple[int, float]]:
    """(step, loss) of each line of a run's log that is there by now."""
    log = root / "runs" / name / "0001" / "metrics.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.is_file() else []
    return [(line["step"], line["loss"]) for line in map(json.loads, lines) if line["split"] == "train"]


def last_checkpoint(root: Path, name: str) -> dict[str, bytes]:
    import tensorflow as tf

    newest = sorted((root / "runs" / name / "0001" / "checkpoints").glob("[0-9]*"))[-1]
    reader = tf.train.load_checkpoint(str(newest / "state"))
    names = [key for key in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in key]
    assert len(names) == 4  # the one table, its two moments, and the count of updates
    return {key: np.asarray(reader.get_tensor(key)).tobytes() for key in names}


@pytest.mark.parametrize("task", ["recommendation", pytest.param("image", marks=pytest.mark.slow)])
def test_two_workers_descend_as_one_process_does(task, tmp_path):
    from pipeline import records
    from pipeline.training import loop

    committed(task, tmp_path)
    said = by_launch(words(task, tmp_path, "two", 2))
    assert f"[0] {tmp_path / 'runs' / 'two' / '0001'}" in said.splitlines()
    preset, config = arguments.parse("train", words(task, tmp_path, "one", 2)[1:])
    loop.train(config, records.find(config), preset)
    two, one = losses(tmp_path, "two"), losses(tmp_path, "one")
    assert [step for step, _ in two] == [step for step, _ in one] == [2, 4, 6, 8, 10, 12]
    np.testing.assert_allclose([loss for _, loss in two], [loss for _, loss in one], rtol=1e-6)


@pytest.mark.slow
def test_workers_whose_clocks_disagree_still_make_each_checkpoint_together(tmp_path):
    committed("recommendation", tmp_path)
    command = [sys.executable, "-m", "pipeline", *words("recommendation", tmp_path, "two", 2), "--train.keep", "99"]
    addresses = [f"127.0.0.1:{port}" for port in launch.ports(2)]
    due = [["--train.checkpoint-seconds", seconds] for seconds in ("1e-6", "300")]  # at each line, and never
    workers = [worker([*command, *due[i]], addresses, i) for i in range(2)]
    try:
        said = [each.communicate(timeout=100)[1] for each in workers]
    finally:
        for each in workers:
            each.kill()
    assert [each.returncode for each in workers] == [0, 0], said
    folder = tmp_path / "runs" / "two" / "0001" / "checkpoints"
    assert sorted(int(path.name) for path in folder.glob("[0-9]*")) == [2, 4, 6, 8, 10, 12]


@pytest.mark.chaos
@pytest.mark.timeout(900)  # five starts of two processes
def test_who_loses_a_worker_says_so_and_the_restarted_run_ends_bit_equal(tmp_path):
    """Fault F15, without `launch`, as on a cluster: worker 1 is killed, then the chief; then one is told to end."""
    committed("recommendation", tmp_path)
    by_launch(words("recommendation", tmp_path, "whole", 30))
    command = [sys.executable, "-m", "pipeline", *words("recommendation", tmp_path, "lost", 30)]
    for victim, number in ((1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGTERM)):
        addresses = [f"127.0.0.1:{port}" for port in launch.ports(2)]
        before = len(losses(tmp_path, "lost"))
        workers = [worker(command, addresses, i) for i in range(2)]
        while len(losses(tmp_path, "lost")) < before + 9:
            assert [each.poll() for each in workers] == [None, None]
            time.sleep(0.05)
        workers[victim].send_signal(number)
        _, said = workers[1 - victim].communicate(timeout=30)
        workers[victim].communicate(timeout=30)
        last = said.splitlines()[-1]
        if number == signal.SIGKILL:
            assert workers[1 - victim].returncode == UNAVAILABLE
            assert re.search(rf"worker {victim} at {addresses[victim]} is gone( after update \d+)?; .* goes on", last)
        else:
            assert [each.returncode for each in workers] == [TERMINATED, TERMINATED]
            assert "which is saved" in last
    by_launch(words("recommendation", tmp_path, "lost", 30))
    assert losses(tmp_path, "lost") == losses(tmp_path, "whole")
    assert last_checkpoint(tmp_path, "lost") == last_checkpoint(tmp_path, "whole")


FULL = (
    "import sys; from pipeline import __main__, checkpoints; from tests import faults\n"
    "checkpoints.write = lambda root, *_: faults.ERRORS['ENOSPC'](root)\n"
    "__main__.main(sys.argv[1:])"
)


@pytest.mark.chaos
def test_on_a_full_disk_all_workers_end_with_the_same_line(tmp_path):
    committed("recommendation", tmp_path)
    command = [sys.executable, "-c", FULL, *words("recommendation", tmp_path, "full", 9)]
    addresses = [f"127.0.0.1:{port}" for port in launch.ports(2)]
    workers = [worker(command, addresses, i) for i in range(2)]
    said = [each.communicate(timeout=120)[1].strip().splitlines()[-1] for each in workers]
    assert said[0] == said[1]
    assert "3 checkpoints in a row failed" in said[0]
    assert [each.returncode for each in workers] == [CANNOT_WRITE, CANNOT_WRITE]


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", [0, 1])
def test_restarting_each_failed_worker_by_itself_is_enough(victim, tmp_path):
    """As Kubernetes does: addresses stay, and a lost worker is back before the others have noticed."""
    committed("recommendation", tmp_path)
    command = [sys.executable, "-m", "pipeline", *words("recommendation", tmp_path, "lost", 40)]
    addresses = [f"127.0.0.1:{port}" for port in launch.ports(2)]

    def start(i: int) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, "--train.strategy", "multi_worker"], cwd=ROOT, env=launch.environment(addresses, i)
        )

    workers, starts, killed = [start(0), start(1)], [1, 1], False
    deadline = time.monotonic() + 280
    while [worker.poll() for worker in workers] != [0, 0]:
        assert time.monotonic() < deadline
        if not killed and len(losses(tmp_path, "lost")) > 15:
            workers[victim].kill()
            workers[victim].wait()
            killed = True
        for i, worker in enumerate(workers):
            if worker.poll() not in (None, 0):
                workers[i], starts[i] = start(i), starts[i] + 1
        time.sleep(0.05)
    steps = [step for step, _ in losses(tmp_path, "lost")]
    assert killed
    assert steps == list(range(2, 241, 2))
    assert max(starts) <= 6
