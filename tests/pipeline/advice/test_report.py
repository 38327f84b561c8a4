import json
import math
import os
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tyro

from pipeline.advice.report import command, report
from pipeline.config import Config, Gate, to_json
from pipeline.errors import Corrupt, UserError
from pipeline.presets import preset_of
from pipeline.training.journal import Journal

EVIL = "<script>alert(1)</script>"
ROOT = Path(__file__).parents[3]


class Outline(HTMLParser):
    """Checks that tags nest, and keeps tags, attributes and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += " ".join(data.split()) + " "


def write(run_dir, **files):
    for name, value in files.items():
        (run_dir / f"{name}.json").write_text(json.dumps(value))


def check(metric, part, old, new, threshold, text):
    return {"metric": metric, "slice": part, "old": old, "new": new, "threshold": threshold, "text": text}


@pytest.fixture
def run_dir(tmp_path):
    """A finished, judged and pushed run of an image preset."""
    directory = tmp_path / "runs" / "digits" / "0001"
    directory.mkdir(parents=True)
    records = tmp_path / "records"
    records.mkdir()
    (records / "MANIFEST.json").write_text(
        json.dumps(
            {
                "files": {},
                "counts": {"in": 1000, "good": 994, "dead": 6, "by_shard": {}, "train": 800, "val": 90, "test": 104},
                "fingerprint": "3f9a1c77be04d2e1",
            }
        )
    )
    with Journal(directory, tensorboard=False, resume_step=0) as journal:
        for step in range(10, 210, 10):
            epoch = 1 + (step - 1) // 50
            journal.write(step, epoch, "train", loss=2 / step, learning_rate=0.1, gradient_norm=1.0 + step)
            if step % 50 == 0:
                journal.write(step, epoch, "val", loss=3 / step, accuracy=0.9 - 0.001 * abs(150 - step))
    write(
        directory,
        config={
            "preset": "digits-sample",
            "config": to_json(preset_of("digits-sample")),
            "records": str(records),
            "fingerprint": {"records": "3f9a", "code": "9ab0", "versions": {"keras": "3.15.1"}},
        },
        training={
            "best_step": 150,
            "best_epoch": 3,
            "epochs": 4,
            "seconds": 61.0,
            "steps": 200,
            "examples_per_second": 3093.4,
            "stopped": "early",
        },
        evaluation={
            "examples": 104,
            "metrics": {"loss": 0.25, "accuracy": 0.9712},
            "intervals": {"accuracy": [0.95, 0.99]},
            "slices": {
                "label=7": {"examples": 60, "accuracy": 0.99},
                "label=1": {"examples": 54, "accuracy": 0.91},
                "label=4": {"examples": 9, "accuracy": 0.95},
                "label=9": {"examples": 0},
            },
            "seconds": {"serving_default": 0.0123},
            "users": 0,
            "problems": [],
            "confusion": {"7": {"7": 50, "1": 10}, "1": {"1": 54}},
        },
        decision={
            "accepted": True,
            "reasons": [],
            "passed": [check("accuracy", "all", 0.9655, 0.9712, 0.96, "held")],
            "not_judged": ["label=4 is small"],
            "champion": 2,
        },
        pushed={"version": 3, "path": "exports/digits/3"},
    )
    return directory


def page_of(run_dir):
    return report(run_dir).read_text()


def text_of(run_dir):
    return " ".join(Outline(page_of(run_dir)).text.split())


def test_the_page_names_run_preset_verdict_metrics_data_and_lineage(run_dir):
    text = text_of(run_dir)
    for expected in (
        "digits-sample 0001",
        "preset digits-sample, image",
        "Pushed as version 3",
        "0.9712",
        "0.9500 – 0.9900",
        "gate ≥ 0.9600",
        "live 0.9655",
        "On 104 test examples",
        "12.3 ms by serving_default",
        "stopped early",
        "Best epoch 3 of 4 (update 150, ringed); 3,093 examples/s",
        "rows in 1,000",
        "good 994",
        "dead letters 6",
        "train 800",
        "val 90",
        "test 104",
        "3f9a1c77be04d2e1",
        "keras 3.15.1",
        "seed 0",
        "exports/digits/3",
        "live model before version 2",
        "label=4 is small",
    ):
        assert expected in text, expected


def test_gate_and_name_are_those_that_the_decision_was_made_by(run_dir):
    decision = json.loads((run_dir / "decision.json").read_text())
    gate = to_json(Gate(at_least={"accuracy": 0.8765}))
    write(run_dir, decision={**decision, "settings": {"gate": gate, "run": {"name": "digits", "model": "decided"}}})
    text = text_of(run_dir)
    assert "--gate.at-least accuracy 0.8765" in text
    assert "--run.model decided" in text


def test_a_refusal_says_metric_slice_old_new_and_threshold(run_dir):
    (run_dir / "pushed.json").unlink()
    reason = check("accuracy", "label=1", 0.97, 0.91, 0.95, "accuracy, slice label=1: live 0.97, candidate 0.91.")
    write(run_dir, decision={"accepted": False, "reasons": [reason], "passed": [], "not_judged": [], "champion": 2})
    text = text_of(run_dir)
    assert "Refused accuracy, slice label=1: live 0.97, candidate 0.91." in text
    assert "accuracy label=1 0.9700 0.9100 0.9500" in text
    assert "Pushed" not in text


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "metrics.jsonl",
        "training.json",
        "evaluation.json",
        "decision.json",
        "pushed.json",
        "../../../records/MANIFEST.json",
    ],
)
def test_each_input_may_be_absent(run_dir, name):
    (run_dir / name).unlink()
    said = {
        "config.json": "There is no config.json",
        "metrics.jsonl": "Nothing is logged yet",
        "training.json": "training is not finished",
        "evaluation.json": "Not evaluated yet",
        "decision.json": "Not judged yet",
        "pushed.json": "Accepted, not pushed yet",
    }
    assert said.get(name, "The records directory is not there") in text_of(run_dir)


def test_an_empty_run_says_of_every_section_that_it_is_empty(tmp_path):
    text = text_of(tmp_path)
    for expected in ("Not judged yet", "Not evaluated yet", "Nothing is logged yet", "No slices", "no config.json"):
        assert expected in text


def test_the_file_loads_nothing_and_runs_nothing(run_dir):
    page = page_of(run_dir)
    outline = Outline(page)
    assert "://" not in page
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(outline.tags)
    links = [value for name, value in outline.attributes if name in ("src", "href", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert "@import" not in page
    policy = next(value for name, value in outline.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none';")


def test_names_from_data_cannot_become_markup(run_dir):
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    evaluation["metrics"][EVIL] = 1.0
    evaluation["slices"][f"label={EVIL}"] = {"examples": 70, EVIL: 0.5}
    evaluation["confusion"][EVIL] = {EVIL: 3}
    evaluation["problems"] = [EVIL]
    described = json.loads((run_dir / "config.json").read_text())
    described["config"]["data"]["classes"] = [EVIL, "$\\frac"]
    described["config"]["run"]["name"] = described["preset"] = EVIL
    described["config"]["gate"]["at_least"] = {EVIL: 0.5}
    reasons = [check(EVIL, EVIL, 0, 0, 0, EVIL)]
    write(run_dir, evaluation=evaluation, config=described, decision={"accepted": False, "reasons": reasons})
    with Journal(run_dir, tensorboard=False, resume_step=200) as journal:
        journal.write(250, 5, "val", **{EVIL: 1.0})
    page = page_of(run_dir)
    assert EVIL not in page
    assert "script" not in Outline(page).tags
    assert page.count("&lt;script&gt;") >= 10


def test_slices_come_worst_first_and_those_without_the_metric_last(run_dir):
    text = text_of(run_dir).split("The worst accuracy first")[1].split("Confusion")[0]
    assert sorted((f"label={n}" for n in "7149"), key=text.index) == ["label=1", "label=4", "label=7", "label=9"]


def test_slices_of_an_error_come_with_the_largest_first(run_dir):
    slices = {"a": {"examples": 1, "rmse": 0.8}, "b": {"examples": 1, "rmse": 1.0}}
    write(run_dir, config={}, evaluation={"examples": 2, "metrics": {"rmse": 0.9}, "slices": slices})
    text = text_of(run_dir).split("The worst rmse first")[1]
    assert text.index(" b ") < text.index(" a ")


def test_small_slices_are_grey(run_dir):
    page = page_of(run_dir)
    assert [line.split(">")[2].split("<")[0] for line in page.splitlines() if 'class="small-slice"' in line] == [
        "label=4",
        "label=9",
    ]


def test_the_confusion_matrix_has_a_row_a_true_class(run_dir):
    text = text_of(run_dir).split("Confusion")[1].split("Data")[0]
    assert text.split()[-8:] == ["7", "1", "7", "50", "10", "1", "0", "54"]
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    write(run_dir, evaluation={**evaluation, "confusion": {}})
    assert "Confusion" not in text_of(run_dir)


def test_a_large_confusion_matrix_becomes_a_list_of_the_largest_mistakes(run_dir):
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    counts = {f"c{i}": {f"c{i}": 100, f"c{(i + 1) % 40}": i} for i in range(40)}
    write(run_dir, evaluation={**evaluation, "confusion": counts})
    text = text_of(run_dir)
    assert "True class Answer Rows c39 c0 39 c38 c39 38" in text
    assert "c5 c6" not in text


def test_four_curves_follow_the_page_colours_and_mark_the_best_epoch(run_dir):
    page = page_of(run_dir)
    assert page.count("<svg") == 4
    assert all(f"<b>{name}</b>" in page for name in ("Loss", "Validation accuracy", "Learning rate", "Gradient norm"))
    figures = "".join(part.split("</svg>")[0] for part in page.split("<svg")[1:])
    assert "currentColor" in figures
    assert "#0" not in figures.replace('href="#', "").replace("url(#", "")
    marked = page.count("stroke-dasharray: 2.4,2.4")  # (3, 3) points of a line 0.8 wide
    training = json.loads((run_dir / "training.json").read_text())
    write(run_dir, training={**training, "best_step": None})
    assert marked == 2
    assert page_of(run_dir).count("stroke-dasharray: 2.4,2.4") == 0


def test_what_monitors_read_is_drawn_and_told_in_words(run_dir):
    with Journal(run_dir, tensorboard=False, resume_step=200) as journal:
        values = {"update_to_weight": 0.002, "dead_units": 0.75, "dead_units/<b>": 0.75, "gradient/conv": 0.1}
        for epoch in (5, 6):
            journal.write(50 * epoch, epoch, "monitor", **values, **{"gradient/dense": 0.2, "gradient/head": math.inf})
    page = Outline(page_of(run_dir))
    titles = {value for name, value in page.attributes if name == "aria-label"}
    assert {"Update / weight", "Dead units", "Gradient / weight: median and range over the layers"} <= titles
    assert "Dead units: up to 75% of the units are 0 for every example in <b>, since epoch 5" in page.text
    assert "Exploding gradients: the gradient is inf times the weights in head" in page.text


def test_ids_are_unique_over_all_figures(run_dir):
    ids = [value for name, value in Outline(page_of(run_dir)).attributes if name == "id"]
    assert ids
    assert len(ids) == len(set(ids))


def test_a_diverged_run_is_drawn_and_says_what_cannot_be(tmp_path):
    with Journal(tmp_path, tensorboard=False, resume_step=0) as journal:
        for step, loss in enumerate((1.0, 1e30, math.inf, math.nan, math.nan), start=1):
            journal.write(step, 1, "train", loss=loss, learning_rate=0.1, gradient_norm=math.nan)
        journal.write(5, 1, "val", loss=math.nan, accuracy=math.nan)
    write(tmp_path, evaluation={"examples": 2, "metrics": {"loss": math.nan, "accuracy": None}})
    text = text_of(tmp_path)
    assert "4 values that are not finite cannot be drawn." in text
    assert "NaN" in text


def test_a_long_log_is_drawn_with_a_bounded_number_of_points(tmp_path):
    lines = [json.dumps({"step": step, "epoch": 1, "split": "train", "loss": 1 / step}) for step in range(1, 50_001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert len(page_of(tmp_path)) < 60_000


def test_equal_inputs_give_equal_bytes_in_another_process(run_dir):
    first = report(run_dir).read_bytes()
    code = "import sys; from pathlib import Path; from pipeline.advice.report import report; report(Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run([sys.executable, "-c", code, str(run_dir)], cwd=ROOT, env=environment, check=True)
    assert (run_dir / "report.html").read_bytes() == first


@pytest.mark.parametrize("preset", ["digits-sample", "cifar10", "reviews-sample", "movielens"])
def test_the_command_spells_out_the_settings_of_the_run(preset):
    config = tyro.cli(
        Config,
        default=preset_of(preset),
        config=(tyro.conf.AvoidSubcommands,),
        args=[
            "--train.batch-size",
            "17",
            "--data.classes",
            "a b",
            "c",
            "--optimizer.weight-decay",
            "0.1",
            "--run.name",
            "x",
            "--train.no-tensorboard",
            "--optimizer.arguments",
            "beta_1",
            "0.8",
            "--data.path",
            "/data/it's here",
        ],
    )
    words = shlex.split(command({"preset": preset, "config": json.loads(json.dumps(to_json(config)))}))
    assert words[:4] == ["minibatch", "run", preset, "--fresh"]  # where it is shown the run is there already
    again = tyro.cli(Config, default=preset_of(preset), config=(tyro.conf.AvoidSubcommands,), args=words[4:])
    assert again == config


def test_the_ways_to_run_that_were_measured_are_shown_and_the_command_gives_the_chosen_one(run_dir):
    plain = {"jit": False, "precision": "float32", "inputs": "memory", "steps_per_call": 40}
    plain |= {"milliseconds": 12.5, "note": "plain"}
    other = {**plain, "jit": True, "inputs": "streamed", "milliseconds": 3.25, "steps_per_call": 150, "note": ""}
    apart = {**plain, "precision": "mixed_bfloat16", "milliseconds": 1.0, "note": "losses differ by 9.0%"}
    described = {**json.loads((run_dir / "config.json").read_text()), "preset": "digits-sample"}
    described["config"].setdefault("train", {}).update({"plan": "measured", "jit": False})
    write(run_dir, config=described, plan={"chosen": other, "trials": [plain, other, apart]})
    text = text_of(run_dir)
    assert "12.5" in text
    assert "losses differ by 9.0%" in text
    assert text.count("chosen") == 1
    for option in ("--train.plan given", "--train.jit", "--train.inputs streamed", "--train.steps-per-call 150"):
        assert option in text


def test_a_missing_extra_is_one_line_that_says_what_to_install(run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"pip install '\.\[report\]'"):
        report(run_dir)


def test_a_missing_run_and_a_damaged_file_are_told_by_name(run_dir):
    with pytest.raises(UserError, match="0002 is not there"):
        report(run_dir.parent / "0002")
    (run_dir / "evaluation.json").write_text('{"examples": 1')
    with pytest.raises(Corrupt, match=r"evaluation\.json is not readable"):
        report(run_dir)
