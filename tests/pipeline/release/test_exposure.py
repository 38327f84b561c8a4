"""Whether the live model has seen the test rows is told by row ids, where its records are still there."""

import logging
from pathlib import Path

import pytest
import tensorflow as tf

from models.options import Sentiment
from pipeline import manifest, records
from pipeline.config import Config, Data, Run
from pipeline.release.exposure import exposure


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(model=Sentiment(), data=Data(name="reviews"), run=Run(name="r", model="r", root=tmp_path))


def made(config: Config, name: str, source: str = "sample", **splits: range) -> Path:
    directory = config.records_root / name
    with manifest.committing(directory) as draft:
        for split, ids in splits.items():
            with tf.io.TFRecordWriter(str(draft.path / records.shard_name(split, 0, 1))) as writer:
                for i in ids:
                    writer.write(records.encode({"id": f"row{i}", "text": "t", "label": "l"}, "sentiment"))
        draft.facts["key"] = {"settings": {"data": {"source": source, "name": "reviews"}}}
    return directory


def version(config: Config, **facts) -> Path:
    with manifest.committing(config.exports_root / "1") as draft:
        draft.facts.update(facts)
    return config.exports_root / "1"


def test_the_same_records_are_nothing_to_tell(config):
    mine = made(config, "mine", train=range(10), test=range(10, 20))
    assert exposure(version(config, records="mine"), mine, config) == ""


def test_the_test_rows_among_the_live_model_s_training_and_validation_rows_are_counted(config):
    mine = made(config, "mine", train=range(10), test=range(10, 20))
    made(config, "theirs", train=range(5, 13), val=range(13, 15), test=range(15, 25))
    note = exposure(version(config, records="theirs"), mine, config)
    assert "made from other records (theirs, not mine): it saw 5 of the 10 test rows" in note
    assert "\n" not in note


def test_other_records_with_the_same_split_are_nothing_to_tell(config):
    mine = made(config, "mine", train=range(10), test=range(10, 20))
    made(config, "theirs", train=range(10), val=range(30, 35), test=range(10, 20))
    assert exposure(version(config, records="theirs"), mine, config) == ""


@pytest.mark.parametrize("facts", [{"records": "gone"}, {}])
def test_records_that_are_gone_or_were_never_named_may_hold_the_test_rows(config, facts):
    mine = made(config, "mine", test=range(10, 20))
    assert "it may have seen some of the test rows" in exposure(version(config, **facts), mine, config)


def test_ids_of_another_source_are_other_rows(config):
    mine = made(config, "mine", test=range(10, 20))
    made(config, "theirs", source="tfds", train=range(10, 20))
    assert "it may have seen some" in exposure(version(config, records="theirs"), mine, config)


def test_a_live_model_without_a_manifest_is_for_the_gate_to_refuse(config):
    mine = made(config, "mine", test=range(10, 20))
    (config.exports_root / "1").mkdir(parents=True)
    assert exposure(config.exports_root / "1", mine, config) == ""


def test_the_gate_s_decision_carries_the_note_and_says_it(config, tmp_path, monkeypatch, caplog):
    from pipeline.release import gate as gate_module
    from pipeline.release.evaluate import Evaluation

    found = Evaluation(examples=1000, metrics={"accuracy": 0.9}, seconds={"serving_default": 0.1})
    export, mine = version(config, records="theirs"), made(config, "mine", test=range(10, 20))
    monkeypatch.setattr(gate_module, "load_rows", lambda *_: {"rows": {}, "task": "sentiment"})
    monkeypatch.setattr(gate_module, "load_export", lambda _: type("Loaded", (), {"signatures": {}}))
    monkeypatch.setattr(gate_module, "evaluate", lambda *_, **__: found)
    monkeypatch.setattr(gate_module, "side_by_side", lambda *_: [found.seconds, found.seconds])
    with caplog.at_level(logging.WARNING):
        decision = gate_module.gate(export, found, mine, config, tmp_path)
    assert decision.accepted
    assert len(decision.notes) == 2
    assert "this very export: it was compared with itself" in decision.notes[1]  # as version() copies it
    assert decision.notes[0] in caplog.text
    assert decision.export == manifest.fingerprint(manifest.read(export)["files"])
