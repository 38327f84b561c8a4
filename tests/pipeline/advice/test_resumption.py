"""verify-resume tells runs that are bit-equal from those that are not, and names the first difference."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from pipeline import checkpoints, manifest
from pipeline.advice.proofs import Resumption
from pipeline.advice.resumption import first_difference, verify
from pipeline.arguments import parse
from pipeline.errors import MISSING, REFUSED, USAGE, UserError
from pipeline.training import journal
from pipeline.training.loop import train
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    return train(tiny.config("recommendation", root), tiny.records_dir("recommendation", root))


@pytest.fixture
def runs(trained, tmp_path):
    """Two equal runs."""
    return [shutil.copytree(trained, tmp_path / name) for name in ("one", "two")]


def rewrite(run, change):
    """The lines of a run's log, changed."""
    lines = [json.loads(text) for text in (run / journal.NAME).read_text().splitlines()]
    (run / journal.NAME).write_text("".join(json.dumps(line) + "\n" for line in change(lines)))


def changed(name, value):
    def change(lines):
        at = next(i for i, line in enumerate(lines) if name in line)
        return [*lines[:at], {**lines[at], name: value(lines[at][name])}, *lines[at + 1 :]]

    return change


def test_equal_runs_have_no_difference_and_speeds_do_not_count(runs):
    rewrite(runs[1], changed("examples_per_second", lambda value: value * 2))
    outcome = json.loads((runs[1] / "training.json").read_text())
    (runs[1] / "training.json").write_text(json.dumps({**outcome, "seconds": 99.0}))
    assert first_difference(*runs) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed("loss", lambda value: np.nextafter(value, 9)), "metrics.jsonl line 1 (update 4, train): loss is "),
        (changed("rmse", lambda value: "NaN"), "rmse is "),
        (lambda lines: lines[:-1], "lines and"),
        (lambda lines: [*lines[:2], *lines[1:]], "has update 6 of train after update 6"),
        (lambda lines: [line for line in lines if line["step"] != 4], "line 1 (update 4, train): "),
    ],
    ids=["a bit", "a NaN", "the end lost", "twice", "a gap"],
)
def test_a_log_that_differs_is_told_by_its_first_line(runs, change, words):
    rewrite(runs[1], change)
    assert words in first_difference(*runs)


def test_a_variable_that_differs_by_one_bit_is_named(runs):
    newest = checkpoints.listed(runs[1] / "checkpoints")[-1]
    reader = tf.train.load_checkpoint(str(newest / "state"))
    arrays = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    name = next(name for name in arrays if name.startswith("optimizer") and arrays[name].size > 4)
    arrays[name].flat[3] = np.nextafter(arrays[name].flat[3], np.float32(9))
    manifest.remove(newest)
    checkpoints.write(newest.parent, int(newest.name), arrays, {})
    assert f"{newest.name}: {name} differs in 1 of {arrays[name].size} numbers, by up to" in first_difference(*runs)


@pytest.mark.parametrize("name", ["best_score", "steps", "stopped"])
def test_an_outcome_that_differs_is_told(runs, name):
    outcome = json.loads((runs[1] / "training.json").read_text())
    (runs[1] / "training.json").write_text(json.dumps({**outcome, name: 7}))
    assert first_difference(*runs).startswith(f"training.json: {name} is ")


def config_of(root, *options, epochs=3):
    """digits-sample on tiny's images, as its users would say it."""
    small = ["--model.height=8", "--model.width=8", "--model.channels=3", "--model.filters", "4", "8"]
    data = ["--data.name=image", "--data.classes", "dark", "light"]
    short = ["--train.batch-size=16", "--train.plan=given", "--train.steps-per-call=2", f"--train.epochs={epochs}"]
    words = [*small, *data, *short, "--train.no-tensorboard", f"--run.root={root}"]
    return parse("verify-resume", ["digits-sample", *words, *options], Resumption)[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--train.no-deterministic",), "needs --train.deterministic"),
        (("--kills", "0"), "--kills 0"),
        (("--train.strategy", "multi_worker"), "one process"),
    ],
)
def test_what_cannot_be_proved_is_refused_in_words(tmp_path, options, words):
    with pytest.raises(UserError, match=words) as raised:
        verify(config_of(tmp_path, *options), "digits-sample")
    assert raised.value.code == USAGE


def test_without_records_it_says_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match="minibatch preprocess") as raised:
        verify(config_of(tmp_path), "digits-sample")
    assert raised.value.code == MISSING
    assert [*tmp_path.iterdir()] == []


@pytest.fixture
def root(tmp_path):
    """A root with records that `minibatch train digits-sample` finds."""
    path = tiny.records_dir("image", tmp_path) / manifest.NAME
    described = {name: value for name, value in json.loads(path.read_text()).items() if name != manifest.SEAL}
    path.write_text(json.dumps({**described, "key": {"task": "image", "settings": {}}}))
    return tmp_path


@pytest.mark.chaos
def test_a_run_killed_ten_times_is_proved_and_nothing_is_left_behind(root, capfd):
    verify(config_of(root, "--kills", "10", epochs=12), "digits-sample")
    said = capfd.readouterr().out
    assert "killed 10 times" in said
    assert "verdict: bit-equal" in said
    assert not [path for path in root.iterdir() if "verify" in path.name]


@pytest.mark.chaos
def test_a_resume_that_loses_a_bit_is_not_proved(root, tmp_path, monkeypatch):
    """The children's `restore` changes one weight by the least that float32 knows."""
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(
        f"#!{sys.executable}\n"
        "import runpy, sys\n"
        f"sys.path.insert(0, {os.getcwd()!r})\n"
        "import numpy as np\n"
        "from pipeline import checkpoints\n"
        "right = checkpoints.restore\n"
        "def wrong(root, model, *rest):\n"
        "    facts, variable = right(root, model, *rest), model.trainable_variables[-1]\n"
        "    if facts:\n"
        "        variable.assign(np.nextafter(variable.numpy(), np.float32(9)))\n"
        "    return facts\n"
        "checkpoints.restore = wrong\n"
        "sys.argv = ['minibatch', *sys.argv[3:]]\n"
        "runpy.run_module('pipeline', run_name='__main__')\n"
    )
    wrapper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(wrapper))
    with pytest.raises(UserError, match=r"not the undisturbed one: metrics\.jsonl line \d+") as raised:
        verify(config_of(root, "--kills", "1", "--kill-seed", "2"), "digits-sample")
    assert raised.value.code == REFUSED
