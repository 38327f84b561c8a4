"""Claims about the record contract: what goes in comes out, and what is damaged is told in one line."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import manifest, records
from pipeline.config import to_json
from pipeline.errors import DATA, MISSING, UserError
from tests import tiny

ROWS = {
    "image": [
        {"id": "a", "image_bytes": b"\x89PNG\0\xff", "label": "Größe 大"},
        {"id": "ß/2", "image_bytes": b"", "label": ""},
    ],
    "sentiment": [
        {"id": "a", "text": "crème brûlée — İstanbul\u00a0😀\n\0", "label": "pos"},
        {"id": "b", "text": b"bytes that are no UTF-8: \xff", "label": b"neg"},
    ],
    "recommendation": [
        {"id": "a", "user_id": "u 1", "item_id": "ф", "rating": 3.5, "timestamp": 881250949},
        {"id": "b", "user_id": b"2", "item_id": 7, "rating": -1, "timestamp": 2**40},
    ],
}


@pytest.mark.parametrize("task", tiny.TASKS)
def test_what_is_encoded_is_what_is_parsed(task):
    rows = ROWS[task]
    parsed = records.parse(tf.constant([records.encode(row, task) for row in rows]), task)
    assert set(parsed) == set(records.FEATURES[task])
    for name, dtype in records.FEATURES[task].items():
        assert (parsed[name].dtype, parsed[name].shape) == (dtype, (len(rows),))
        expected = [row[name] for row in rows]
        if dtype == tf.string:
            expected = [value if isinstance(value, bytes) else str(value).encode() for value in expected]
        assert parsed[name].numpy().tolist() == expected


def test_the_same_row_is_the_same_bytes_in_whatever_order_its_features_come():
    row = ROWS["recommendation"][0]
    assert records.encode(row, "recommendation") == records.encode(dict(reversed(row.items())), "recommendation")


def test_only_the_task_s_features_are_written():
    row = {**ROWS["sentiment"][0], "group": "a film"}
    assert records.encode(row, "sentiment") == records.encode(ROWS["sentiment"][0], "sentiment")


@pytest.mark.parametrize("task", tiny.TASKS)
def test_every_record_has_an_id(task):
    assert records.FEATURES[task]["id"] == tf.string


def test_shards_are_named_by_split_number_and_count():
    assert records.shard_name("train", 3, 16) == "train-00003-of-00016.tfrecord"


def write(directory: Path, shards: dict[str, list[dict]], task: str = "recommendation", **facts) -> Path:
    with manifest.committing(directory) as draft:
        for name, rows in shards.items():
            with tf.io.TFRecordWriter(str(draft.path / name)) as writer:
                for row in rows:
                    writer.write(records.encode(row, task))
            draft.rows[name] = len(rows)
        draft.facts.update(facts)
    return directory


def rating(number: int) -> dict:
    return {"id": str(number), "user_id": "u", "item_id": "i", "rating": float(number), "timestamp": number}


@pytest.fixture
def three(tmp_path) -> Path:
    """A training split of 3 shards, the middle one empty."""
    parts = ([rating(0), rating(1)], [], [rating(2)])
    return write(tmp_path / "made", {records.shard_name("train", n, 3): rows for n, rows in enumerate(parts)})


def test_a_split_is_loaded_in_the_order_of_its_shards(three):
    loaded = records.load(three, "train", "recommendation")
    assert loaded["id"].tolist() == [b"0", b"1", b"2"]
    assert loaded["rating"].dtype == np.float32
    assert loaded["timestamp"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("task", tiny.TASKS)
def test_the_tiny_records_come_back_row_by_row(task, tmp_path):
    loaded = records.load(tiny.records_dir(task, tmp_path), "val", task)
    for name in records.FEATURES[task]:
        assert len(loaded[name]) == tiny.SIZES["val"]
    assert loaded["id"].tolist() == [row["id"].encode() for row in tiny.rows(task, "val")]


@pytest.mark.parametrize("shards", [{}, {records.shard_name("test", 0, 1): []}])
def test_an_empty_split_is_told_with_the_options_that_decide_it(tmp_path, shards):
    made = write(tmp_path / "made", shards)
    with pytest.raises(UserError, match=r"split 'test' is empty; check --data\.validation-fraction") as raised:
        records.load(made, "test", "recommendation")
    assert raised.value.code == DATA


FIRST = records.shard_name("train", 0, 3)


def flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


HARMS = {
    "a flipped length": (lambda path: flipped(path, 0), "corrupted record at 0"),
    "a flipped row": (lambda path: flipped(path, 20), "corrupted record at"),
    "a flipped checksum": (lambda path: flipped(path, -1), "corrupted record at"),
    "a cut row": (lambda path: os.truncate(path, path.stat().st_size - 3), "truncated record at"),
    "a cut between two rows": (lambda path: os.truncate(path, path.stat().st_size // 2), "has 1 rows instead of 2"),
    "an empty file": (lambda path: os.truncate(path, 0), "has 0 rows instead of 2"),
    "a missing file": (Path.unlink, "No such file or directory"),
    "no records at all": (lambda path: path.write_bytes(b"id,user_id\n1,2\n" * 9), "corrupted record at 0"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_shard_is_one_line_with_its_path(three, harm):
    strike, said = HARMS[harm]
    strike(three / FIRST)
    with pytest.raises(UserError, match=said) as raised:
        records.load(three, "train", "recommendation")
    message = str(raised.value)
    assert message.startswith(str(three / FIRST))
    assert message.endswith("; run preprocess again.")
    assert "\n" not in message
    assert "{{" not in message
    assert "[Op" not in message
    assert raised.value.code == DATA


def test_records_of_another_task_are_one_line_with_the_path(three):
    with pytest.raises(UserError, match="label") as raised:
        records.load(three, "train", "sentiment")
    assert str(raised.value).startswith(str(three / FIRST))
    assert "\n" not in str(raised.value)


def preprocessed(config, fingerprint: str, seconds: int, **changes) -> Path:
    """An empty records directory as preprocess names and describes it, made at a given time."""
    settings = {"data": to_json(config.data), "model": {"vocabulary_size": 20}}
    for name in ("path", "download", "runner", "runner_options"):
        del settings["data"][name]
    settings["data"] |= changes
    made = write(config.records_root / fingerprint, {}, key={"task": config.task, "settings": settings})
    os.utime(made, (seconds, seconds))
    return made


def with_data(config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def test_find_gives_the_newest_records_with_these_settings_and_says_so(tmp_path, caplog):
    config = tiny.config("sentiment", tmp_path)
    preprocessed(config, "a" * 16, seconds=100)
    newest = preprocessed(config, "b" * 16, seconds=300)
    preprocessed(config, "c" * 16, seconds=200)
    preprocessed(config, "d" * 16, seconds=900, limit=50)
    assert records.find(config) == newest
    assert (
        f"(aaaaaaaaaaaaaaaa, cccccccccccccccc); the one that was preprocessed last is taken: {newest.name}"
        in caplog.text
    )


def test_find_does_not_ask_where_the_source_was_and_how_it_was_read(tmp_path):
    config = tiny.config("sentiment", tmp_path)
    made = preprocessed(config, "a" * 16, seconds=100)
    elsewhere = with_data(config, path=Path("/elsewhere"), download=True, runner="FlinkRunner", runner_options=("--x",))
    assert records.find(elsewhere) == made


@pytest.mark.parametrize("change", [{"limit": 50}, {"shards": 9}, {"split_by": "time"}, {"classes": ("a", "b")}])
def test_find_passes_over_records_made_with_other_data_settings(tmp_path, change):
    config = tiny.config("sentiment", tmp_path)
    preprocessed(config, "a" * 16, seconds=100)
    with pytest.raises(UserError, match="holds no records for these settings: `minibatch preprocess`") as raised:
        records.find(with_data(config, **change))
    assert raised.value.code == MISSING
    assert str(config.records_root) in str(raised.value)


def test_find_passes_over_records_made_for_another_vocabulary_or_task(tmp_path):
    config = tiny.config("sentiment", tmp_path)
    preprocessed(config, "a" * 16, seconds=100)
    larger = dataclasses.replace(config.model, vocabulary_size=21)
    image = with_data(tiny.config("image", tmp_path), name="sentiment")
    for other in (dataclasses.replace(config, model=larger), image):
        assert other.records_root == config.records_root
        with pytest.raises(UserError, match="holds no records for these settings"):
            records.find(other)


def test_find_sees_no_draft_and_is_not_stopped_by_a_broken_neighbour(tmp_path, caplog):
    config = tiny.config("sentiment", tmp_path)
    with pytest.raises(UserError, match="holds no records"):
        records.find(config)
    made = preprocessed(config, "a" * 16, seconds=100)
    preprocessed(config, ".tmp-host-1-0", seconds=900)
    (preprocessed(config, "b" * 16, seconds=900) / manifest.NAME).write_text("{")
    assert records.find(config) == made
    assert "b" * 16 in caplog.text
