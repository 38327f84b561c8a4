"""The original MovieLens files, tiny and made here."""

import json
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest

from pipeline.config import Data
from pipeline.errors import DATA, MISSING, USAGE, UserError
from pipeline.sources import open_source, ranges


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for fold in (1, 2):
        (tmp_path / f"u{fold}.base").write_text(f"1\t10\t{fold}\t874965758\n2\t11\t4\t874965759\n")
        (tmp_path / f"u{fold}.test").write_text("3\t12\t5\t874965760")
    return tmp_path


def opened(folder: Path | None, **settings):
    return open_source(Data(source="ml-100k", path=folder, **settings), "recommendation", Path("no-cache"))


def rows(source) -> list[tuple]:
    return [(shard.split, row) for shard in source.shards() for row in source.read(shard)]


def test_base_is_train_and_test_is_test_with_the_line_as_id(folder):
    assert rows(opened(folder)) == [
        ("train", {"id": "u1.base:1", "user_id": "1", "item_id": "10", "rating": "1", "timestamp": "874965758"}),
        ("train", {"id": "u1.base:2", "user_id": "2", "item_id": "11", "rating": "4", "timestamp": "874965759"}),
        ("test", {"id": "u1.test:1", "user_id": "3", "item_id": "12", "rating": "5", "timestamp": "874965760"}),
    ]


def test_the_fold_picks_the_files(folder):
    assert rows(opened(folder, fold=2))[0][1]["rating"] == "2"


def test_a_damaged_line_is_yielded_with_what_there_is(folder):
    (folder / "u1.base").write_bytes(b"3\n\n1\t2\t\xff\xfe\t4\n1\t2\t3\t4\tmore\n\x00\r\n9\t9\t5\t6\n")
    damaged = [row for split, row in rows(opened(folder)) if split == "train"]
    assert damaged == [
        {"id": "u1.base:1", "user_id": "3"},
        {"id": "u1.base:2", "user_id": ""},
        {"id": "u1.base:3", "user_id": "1", "item_id": "2", "rating": b"\xff\xfe", "timestamp": "4"},
        {"id": "u1.base:4", "user_id": "1", "item_id": "2", "rating": "3", "timestamp": "4\tmore"},
        {"id": "u1.base:5", "user_id": "\x00"},
        {"id": "u1.base:6", "user_id": "9", "item_id": "9", "rating": "5", "timestamp": "6"},
    ]


def test_shards_are_small_and_together_read_every_line_once(folder, monkeypatch):
    monkeypatch.setattr(ranges.ranges, "__defaults__", (7,))
    lines = [f"{number}\t1\t3\t874965758" for number in range(20)]
    (folder / "u1.base").write_text("\n".join(lines))
    source = opened(folder)
    shards = [shard for shard in source.shards() if shard.split == "train"]
    assert [len(list(source.read(shard))) for shard in shards] == [7, 7, 6]
    assert [row["user_id"] for shard in shards for row in source.read(shard)] == [str(n) for n in range(20)]
    assert len({shard.name for shard in source.shards()}) == len(source.shards())
    assert all(
        len(ForkingPickler.dumps(shard)) < 300 and b"874965758" not in bytes(ForkingPickler.dumps(shard))
        for shard in shards
    )


def test_a_limit_takes_an_even_stride_of_each_file(folder):
    (folder / "u1.base").write_text("".join(f"{number}\t1\t3\t4\n" for number in range(100)))
    (folder / "u1.test").write_text("".join(f"{number}\t1\t3\t4\n" for number in range(10)))
    users = [(split, row["user_id"]) for split, row in rows(opened(folder, limit=4))]
    assert users == [
        *(("train", user) for user in ("24", "49", "74", "99")),
        *(("test", user) for user in ("2", "4", "7", "9")),
    ]


def test_the_identity_changes_with_a_byte_of_the_files_and_not_with_the_folder(folder, tmp_path_factory):
    before = opened(folder).identity()
    other = tmp_path_factory.mktemp("other")
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert opened(other).identity() == before == json.loads(json.dumps(before))
    (folder / "u1.test").write_text("3\t12\t4\t874965760")
    assert opened(folder).identity() != before
    assert opened(other, fold=2).identity() != before


def test_a_source_travels_to_a_worker(folder):
    source = opened(folder)
    assert rows(ForkingPickler.loads(ForkingPickler.dumps(source))) == rows(source)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda folder: (folder / "u1.test").unlink(), MISSING, "u1.test is missing"),
        (lambda folder: (folder / "u1.base").write_text(""), DATA, "u1.base is empty"),
    ],
)
def test_a_missing_or_empty_file_is_one_line_naming_it(folder, change, code, words):
    change(folder)
    with pytest.raises(UserError, match=words) as caught:
        opened(folder)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_without_a_path_or_with_another_task_the_error_says_what_to_pass(tmp_path):
    with pytest.raises(UserError, match="needs --data") as caught:
        opened(None)
    assert caught.value.code == MISSING
    with pytest.raises(UserError, match="for recommendation, not image") as caught:
        open_source(Data(source="ml-100k", path=tmp_path), "image", tmp_path)
    assert caught.value.code == USAGE
