"""Each kind of bad row becomes a dead letter with its reason and id, and the counts add up."""

import json

import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import DATA, UserError
from pipeline.records import encode

BLACK = tf.io.encode_png(np.zeros((2, 3, 3), np.uint8)).numpy()
JPEG = tf.io.encode_jpeg(np.zeros((2, 3, 3), np.uint8)).numpy()
HUGE_PNG = BLACK[:16] + (8000).to_bytes(4, "big") * 2 + BLACK[24:]
FRAME = JPEG.index(b"\xff\xc0") + 5
HUGE_JPEG = JPEG[:FRAME] + (8000).to_bytes(2, "big") * 2 + JPEG[FRAME + 4 :]

BAD = {
    "image": {
        "missing field: image_bytes": {"image_bytes": None},
        "image_bytes is not bytes": {"image_bytes": "text"},
        "image of 0 bytes": {"image_bytes": b""},
        "image is neither JPEG nor PNG": {"image_bytes": b"GIF89a, or so it says"},
        "image is truncated or corrupt": {"image_bytes": BLACK[:-20]},
        "image of more than 40 megapixels": {"image_bytes": HUGE_PNG},
        "missing field: label": {"label": None},
        "label out of range": {"label": "unicorn"},
        "label is not a string": {"label": 3},
    },
    "sentiment": {
        "text is empty": {"text": " \t\u00a0\n"},
        "text is not UTF-8": {"text": b"caf\xe9"},
        "text is not a string": {"text": 7.5},
        "missing field: text": {"text": None},
        "label out of range": {"label": "meh"},
        "id is empty": {"id": ""},
    },
    "recommendation": {
        "rating is not finite": {"rating": float("nan")},
        "rating is not a number": {"rating": "four"},
        "missing field: rating": {"rating": None},
        "user_id is empty": {"user_id": ""},
        "item_id is empty": {"item_id": "  "},
        "user_id is not a string": {"user_id": 12},
        "timestamp is not a whole number": {"timestamp": 1.5},
        "timestamp does not fit 64 bits": {"timestamp": 2**63},
    },
}
ALSO = {
    "image": [
        ("image is truncated or corrupt", {"image_bytes": JPEG[: len(JPEG) // 2]}),
        ("image is truncated or corrupt", {"image_bytes": JPEG[:3]}),
        ("image is truncated or corrupt", {"image_bytes": BLACK[:10]}),
        ("image of more than 40 megapixels", {"image_bytes": HUGE_JPEG}),
        ("label is empty", {"label": ""}),
    ],
    "sentiment": [
        ("text is not UTF-8", {"text": "half a pair \ud800"}),
        ("text is empty", {"text": b""}),
    ],
    "recommendation": [
        ("rating is not finite", {"rating": "inf"}),
        ("rating is not finite", {"rating": 1e39}),
        ("rating is not a number", {"rating": True}),
        ("rating is not a number", {"rating": "1_0"}),
        ("rating is not a number", {"rating": b"\xff"}),
        ("rating is not a number", {"rating": [3]}),
        ("timestamp is not a whole number", {"timestamp": "soon"}),
        ("timestamp is not a whole number", {"timestamp": float("inf")}),
    ],
}
CLASSES = {"image": ("cat", "dog"), "sentiment": ("neg", "pos"), "recommendation": ()}


@pytest.mark.parametrize("task", BAD)
def test_each_kind_of_bad_row_is_a_dead_letter_with_its_reason_and_counts_add_up(task, literal, good, made):
    faults = [*BAD[task].items(), *ALSO[task]]
    bad = [good(task, 900 + n) | {"id": f"bad{n}"} | fault for n, (_, fault) in enumerate(faults)]
    records = made(literal(task, *bad, good(task, 7), classes=CLASSES[task]))
    expected = [
        {"id": row["id"], "row": 60 + n, "reason": reason}
        for n, (row, (reason, _)) in enumerate(zip(bad, faults, strict=True))
    ]
    expected.append({"id": "r7", "row": 60 + len(bad), "reason": "duplicate id"})
    letters = records.lines("dead_letters.jsonl")
    assert [{name: letter[name] for name in ("id", "row", "reason")} for letter in letters] == expected
    counts = records.manifest["counts"]
    assert counts["by_shard"] == {"all": {"in": 61 + len(bad), "good": 60, "dead": 1 + len(bad)}}
    assert (counts["in"], counts["good"], counts["dead"]) == (61 + len(bad), 60, 1 + len(bad))
    assert counts["train"] + counts["val"] + counts["test"] == 60
    assert all(counts[split] == len(records.rows(split)) for split in ("train", "val", "test"))


def test_a_row_that_is_no_mapping_or_has_no_id_is_a_dead_letter_found_by_its_place(literal, made):
    letters = made(literal("sentiment", "a line", {"text": "no id", "label": "pos"})).lines("dead_letters.jsonl")
    assert [(letter["id"], letter["row"], letter["reason"]) for letter in letters] == [
        (None, 60, "row is not a mapping"),
        (None, 61, "missing field: id"),
    ]


def test_of_equal_ids_the_first_in_the_source_is_kept_whatever_the_split(parts, good, made):
    rows = [good("sentiment", n) for n in range(60)]
    twin = {"id": b"r3", "text": "again", "label": "pos"}
    source = parts("sentiment", {"a": ("train", rows[:40]), "b": ("test", [*rows[40:], twin])})
    records = made(source)
    (letter,) = records.lines("dead_letters.jsonl")
    assert letter == {"id": "r3", "shard": "b", "row": 20, "reason": "duplicate id", "excerpt": "first in a, row 3"}
    assert records.manifest["counts"]["by_shard"]["b"] == {"in": 21, "good": 20, "dead": 1}
    assert all(row["text"] != b"again" for row in records.rows("test"))


def test_an_excerpt_is_short_printable_ascii(literal, made):
    letters = made(literal("sentiment", {"id": "x", "text": "\x1b[31mé" * 50 + "\ud800", "label": "pos"}))
    (letter,) = letters.lines("dead_letters.jsonl")
    assert letter["excerpt"].startswith("'\\x1b[31m\\xe9")
    assert letter["excerpt"].endswith(" and 241 more")
    assert letter["excerpt"].isascii()
    assert letter["excerpt"].isprintable()


def test_no_bad_rows_leave_an_empty_file_of_dead_letters(plain):
    records = plain("sentiment")
    assert (records.path / "dead_letters.jsonl").read_text() == ""
    assert records.manifest["files"]["dead_letters.jsonl"]["rows"] == 0


def test_more_bad_rows_than_the_budget_stop_the_run_and_stay_readable(literal, config, made):
    bad = [{"id": f"bad{n}", "text": text, "label": "pos"} for n, text in enumerate(["", "", None])]
    with pytest.raises(UserError) as stopped:
        made(literal("sentiment", *bad), max_bad_fraction=0.04)
    root = config("sentiment").records_root
    (kept,) = root.iterdir()
    assert kept.name.startswith("dead_letters-")
    assert len(kept.read_text().splitlines()) == 3
    assert stopped.value.code == DATA
    assert str(stopped.value) == (
        "3 of 63 rows are bad, --data.max-bad-fraction allows 4.00%; the commonest reason is 'text is empty' "
        f"(2 rows, such as bad0). All are listed in {kept}: repair the data or raise the option."
    )


def test_exactly_the_budget_is_not_too_much(literal, made):
    bad = [{"id": f"bad{n}", "text": "", "label": "pos"} for n in range(3)]
    assert made(literal("sentiment", *bad, n=57), max_bad_fraction=0.05).manifest["counts"]["dead"] == 3


def test_ratings_may_lack_a_time_unless_it_decides_the_split(literal, made):
    row = {"id": "x", "user_id": "u0", "item_id": "i0", "rating": "4.5"}
    records = made(literal("recommendation", row))
    (found,) = [r for split in ("train", "val", "test") for r in records.rows(split) if r["id"] == b"x"]
    assert (found["timestamp"], found["rating"]) == (0, 4.5)
    assert made(literal("recommendation", row), split_by="time").dead == {"x": "missing field: timestamp"}


def test_values_are_recorded_as_a_client_would_send_them(literal, made):
    row = {"id": b"x", "user_id": "ü".encode(), "item_id": "i", "rating": b"3.25", "timestamp": "12"}
    records = made(literal("recommendation", row))
    (found,) = [r for split in ("train", "val", "test") for r in records.rows(split) if r["id"] == b"x"]
    assert found == {"id": b"x", "user_id": "ü".encode(), "item_id": b"i", "rating": 3.25, "timestamp": 12}
    assert json.loads((records.path / "schema.json").read_text()) == {
        "id": "string", "user_id": "string", "item_id": "string", "rating": "float32", "timestamp": "int64",
    }  # fmt: skip
    assert encode(found, "recommendation")
