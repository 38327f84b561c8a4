"""Poisoned candidates meet the gate as real exports, beside a live model: each is refused by name, nothing moves."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from models.options import Sentiment
from pipeline import manifest, records, stages
from pipeline.config import Config, Gate, Push, Run, to_json
from pipeline.errors import REFUSED, Corrupt, Refused, UserError
from pipeline.release import gate as gate_module
from pipeline.release import live
from pipeline.release.evaluate import evaluate_export, write
from pipeline.release.gate import gate
from pipeline.release.live import Live
from pipeline.release.push import push

ROWS = 400
CLASSES = ("rotten", "fresh")


class Reviews(tf.Module):
    """Reads "<number> good|bad word word ...": right unless `fault` says how it is poisoned."""

    def __init__(self, fault: str = ""):
        self.fault = fault
        random = np.random.default_rng(0).normal(size=ROWS).astype(np.float32)
        sign = {"shifted labels": -3.0, "NaN weights": np.nan, "one class always": 0.0}.get(fault, 3.0)
        self.weight = tf.Variable(sign)
        self.bias = tf.Variable(4.0 if fault == "one class always" else 0.0)
        self.table = tf.Variable(random[: ROWS - 10] if fault == "unseen token" else random)
        name = "review" if fault == "wrong signature" else "text"
        self.signature = tf.function(self.serve, input_signature=[tf.TensorSpec([None], tf.string, name=name)])

    def serve(self, text):
        good = tf.where(tf.strings.regex_full_match(text, r"\d+ good.*"), 1.0, -1.0)
        row = tf.strings.to_number(tf.strings.regex_replace(text, r" .*", ""), tf.int32)
        logit = self.weight * good + self.bias
        if self.fault == "random weights":
            logit = tf.gather(self.table, row)
        elif self.fault == "unseen token":
            logit += 0.01 * tf.gather(self.table, row)
        elif self.fault == "bad on long reviews":
            logit = tf.where(tf.strings.length(text) > 2000, -logit, logit)
        score = tf.sigmoid(logit)
        return {"label": tf.where(score > 0.5, "fresh", "rotten"), "score": score}


def export(directory, fault: str = ""):
    module = Reviews(fault)
    with manifest.committing(directory) as draft:
        tf.saved_model.save(module, str(draft.path), signatures={"serving_default": module.signature})
    return directory


def write_records(directory, rows: int = ROWS):
    """Every 20th label is noise, so that a model that reads the texts right reaches 0.95; every 5th review is long."""
    with manifest.committing(directory) as draft:
        with tf.io.TFRecordWriter(str(draft.path / records.shard_name("test", 0, 1))) as writer:
            for i in range(rows):
                fresh = i % 2 == 0
                text = f"{i} {'good' if fresh else 'bad'}" + " word" * (450 if i % 5 == 0 else 10)
                label = CLASSES[fresh if i % 20 else not fresh]
                writer.write(records.encode({"id": f"row{i}", "text": text, "label": label}, "sentiment"))
        analysis = {"classes": CLASSES, "class_counts": {}}
        (draft.path / "analysis.json").write_text(json.dumps(analysis))
        (draft.path / "vocabulary.tsv").write_text("")
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Records and a good export, made once."""
    root = tmp_path_factory.mktemp("made")
    return write_records(root / "records"), export(root / "good")


@pytest.fixture
def config(tmp_path):
    bars = Gate(
        at_least={"accuracy": 0.8, "auc": 0.8},
        tolerance={"accuracy": 0.25, "loss": 1.0},
        slice_tolerance={"accuracy": 0.1},
        max_latency_ratio=1000.0,  # a busy machine must not decide a test; the one about latency sets the times
    )
    (tmp_path / "run").mkdir()
    return Config(model=Sentiment(), gate=bars, run=Run(name="reviews", model="reviews", root=tmp_path))


def release(export_dir, records_dir, config):
    """What a run does with an export."""
    run_dir = config.run.root / "run"
    decision = gate(export_dir, evaluate_export(export_dir, records_dir, config), records_dir, config, run_dir)
    if decision.accepted:
        push(export_dir, config.exports_root, {})
    assert json.loads((run_dir / "decision.json").read_text()) == json.loads(json.dumps(decision.to_json()))
    assert "\n" not in decision.text
    return decision


def pushed(config) -> list[str]:
    root = config.exports_root
    return sorted(path.name for path in root.iterdir() if path.name.isdigit()) if root.exists() else []


POISON = {
    "random weights": "accuracy, slice all (400 rows): live 0.9500, candidate 0.",
    "one class always": "prediction collapse: 'fresh' for all 400 rows",
    "NaN weights": "serving_default: scores are not finite for 400 of 400 rows",
    "bad on long reviews": "slice words=over 400 (80 rows): live 0.7500, candidate 0.2500, lowest allowed 0.6500",
    "shifted labels": "labels shifted: 'rotten' is answered 'fresh', 'fresh' is answered 'rotten'",
    "wrong signature": "signature serving_default takes review instead of text",
    "unseen token": "serving_default fails on row row390: InvalidArgumentError: indices[0] = 390 is not in [0, 390)",
}


@pytest.mark.parametrize(("fault", "named"), POISON.items(), ids=POISON)
def test_a_poisoned_candidate_is_refused_by_name_and_the_live_model_stays(fault, named, made, config, tmp_path):
    records_dir, good = made
    champion = push(good, config.exports_root, {})
    before = manifest.verify(champion)
    decision = release(export(tmp_path / "candidate", fault), records_dir, config)
    assert not decision.accepted
    assert named in decision.text
    assert decision.champion == 1
    assert pushed(config) == ["1"]
    assert manifest.verify(champion) == before


def run_of(config: Config, export_dir, records_dir):
    """What `minibatch gate` and `push` find: a run of these settings with its export."""
    run_dir = config.runs_root / "0001"
    run_dir.mkdir(parents=True)
    described = {"preset": "p", "config": to_json(config), "records": str(records_dir), "fingerprint": {}}
    (run_dir / "config.json").write_text(json.dumps(described))
    export_dir.rename(run_dir / "export")
    return run_dir


@pytest.mark.parametrize(("fault", "named"), POISON.items(), ids=POISON)
def test_the_commands_end_with_exit_code_3_and_one_line_that_names_the_fault(fault, named, made, config, tmp_path):
    records_dir, good = made
    push(good, config.exports_root, {})
    run_of(config, export(tmp_path / "candidate", fault), records_dir)
    for stage, said in ((stages.gate, named), (stages.push, "was refused by the gate")):
        with pytest.raises(Refused) as raised:
            stage("p", config)
        assert raised.value.code == REFUSED
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)
    assert pushed(config) == ["1"]


def test_the_commands_push_what_is_good_and_it_is_live(made, config, tmp_path, capsys):
    records_dir, good = made
    push(good, config.exports_root, {})
    run_of(config, export(tmp_path / "candidate"), records_dir)
    config = dataclasses.replace(config, push=Push(validate=False, percent=10))
    stages.gate("p", config)
    stages.push("p", config)
    assert capsys.readouterr().out.splitlines()[-1] == str(config.exports_root / "2")
    assert live.read(config.exports_root) == Live(1, None, 2, 10)


def test_a_candidate_that_is_ten_times_slower_is_refused(made, config, monkeypatch):
    records_dir, good = made
    push(good, config.exports_root, {})
    times = [{"serving_default": 0.02}, {"serving_default": 0.002}]
    monkeypatch.setattr(gate_module, "side_by_side", lambda *_: times)
    config = dataclasses.replace(config, gate=dataclasses.replace(config.gate, max_latency_ratio=3.0))
    decision = release(good, records_dir, config)
    assert decision.text == (
        "latency of serving_default, slice all: live 2 ms a batch, candidate 20 ms, highest allowed 6 ms (3 times)."
    )
    assert pushed(config) == ["1"]


def test_a_good_candidate_passes_beside_the_live_model_and_the_decision_shows_intervals(made, config, tmp_path):
    records_dir, good = made
    push(good, config.exports_root, {})
    decision = release(export(tmp_path / "candidate"), records_dir, config)
    assert decision.accepted, decision.text
    assert pushed(config) == ["1", "2"]
    passed = {(reason.metric, reason.slice): reason for reason in decision.passed}
    assert "(95% interval 0." in passed["accuracy", "all"].text
    assert passed["accuracy", "words=over 400"].new == pytest.approx(0.75)
    assert "accuracy, slice words=51-150: not judged, 0 rows of at least 50." in decision.not_judged


def test_without_a_live_model_absolute_thresholds_decide(made, config, tmp_path):
    records_dir, good = made
    refused = release(export(tmp_path / "random", "random weights"), records_dir, config)
    assert "accuracy, slice all (400 rows): live none, candidate 0." in refused.text
    assert "lowest allowed 0.8000" in refused.text
    assert pushed(config) == []
    accepted = release(good, records_dir, config)
    assert accepted.accepted
    assert accepted.champion is None
    assert pushed(config) == ["1"]


def test_the_live_model_is_the_highest_committed_version(made, config, tmp_path):
    records_dir, good = made
    for fault in ("random weights", "bad on long reviews"):
        push(export(tmp_path / fault, fault), config.exports_root, {})
    (config.exports_root / "9").mkdir()
    decision = release(good, records_dir, config)
    assert decision.champion == 2
    assert decision.accepted
    assert pushed(config) == ["1", "10", "2", "9"]


def test_a_damaged_live_model_refuses_and_says_what_to_do(made, config):
    records_dir, good = made
    champion = push(good, config.exports_root, {})
    (champion / "saved_model.pb").write_bytes(b"x")
    decision = release(good, records_dir, config)
    (reason,) = decision.reasons
    assert reason.metric == "champion"
    assert f"the live model in {champion} cannot be compared with" in reason.text
    assert "Move that folder away" in reason.text
    assert pushed(config) == ["1"]


def test_a_live_model_that_tensorflow_cannot_load_refuses(made, config):
    records_dir, good = made
    with manifest.committing(config.exports_root / "1") as draft:
        (draft.path / "saved_model.pb").write_bytes(b"no model")
    assert "TensorFlow cannot load it" in release(good, records_dir, config).text


def test_a_live_model_that_fails_on_the_test_rows_refuses(made, config, tmp_path):
    records_dir, good = made
    push(export(tmp_path / "old", "unseen token"), config.exports_root, {})
    assert "serving_default fails on row row390" in release(good, records_dir, config).text
    assert pushed(config) == ["1"]


def test_versions_that_were_never_committed_refuse(made, config):
    records_dir, good = made
    (config.exports_root / "1").mkdir(parents=True)
    decision = release(good, records_dir, config)
    assert "none of the versions in it was committed" in decision.text
    assert decision.champion is None


def test_too_few_test_rows_refuse(made, config, tmp_path):
    few = write_records(tmp_path / "few", rows=99)
    decision = release(made[1], few, config)
    assert "examples, slice all: live none, candidate 99 test rows, lowest allowed 100." in decision.text
    assert pushed(config) == []


def test_no_test_rows_is_an_error_and_nothing_is_pushed(made, config, tmp_path):
    with pytest.raises(UserError, match="split 'test' is empty"):
        release(made[1], write_records(tmp_path / "none", rows=0), config)
    assert pushed(config) == []


def test_an_export_that_was_changed_is_not_evaluated(made, config, tmp_path):
    damaged = export(tmp_path / "candidate")
    (damaged / "fingerprint.pb").write_bytes(b"x")
    with pytest.raises(Corrupt, match=r"fingerprint\.pb"):
        evaluate_export(damaged, made[0], config)


def test_an_evaluation_is_written_as_json(made, config, tmp_path):
    found = evaluate_export(made[1], made[0], config)
    write(found, tmp_path / "evaluation.json")
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert values["examples"] == ROWS
    assert values["metrics"]["accuracy"] == pytest.approx(0.95)
    assert values["slices"]["words=over 400"]["examples"] == 80
