"""Claims about what the models read of a records directory."""

import dataclasses
import json

import pytest

from models.analysis import ImageAnalysis, RatingsAnalysis, TextAnalysis, load


def test_an_image_analysis_holds_classes_in_their_order_and_the_statistics_of_each_channel(tmp_path):
    values = {"classes": ["b", "a"], "class_counts": {"a": 2, "b": 1}, "mean": [0.1, 0.2, 0.3], "variance": [1, 2, 3]}
    (tmp_path / "analysis.json").write_text(json.dumps(values))
    assert load(tmp_path, "image") == ImageAnalysis(("b", "a"), (0.1, 0.2, 0.3), (1, 2, 3))


def test_a_text_analysis_points_to_the_vocabulary_beside_it(tmp_path):
    values = {"classes": ["neg", "pos"], "class_counts": {"neg": 2, "pos": 1}}
    (tmp_path / "analysis.json").write_text(json.dumps(values))
    analysis = load(tmp_path, "sentiment")
    assert analysis == TextAnalysis(("neg", "pos"), tmp_path / "vocabulary.tsv")


def test_class_names_of_any_script_come_back_as_they_were(tmp_path):
    values = {"classes": ["Größe", "大"], "class_counts": {}, "mean": [0.0], "variance": [1.0]}
    (tmp_path / "analysis.json").write_bytes(json.dumps(values, ensure_ascii=False).encode())
    assert load(tmp_path, "image").classes == ("Größe", "大")


def test_a_ratings_analysis_keeps_users_items_and_counts_in_the_same_order(tmp_path):
    (tmp_path / "analysis.json").write_text(json.dumps({"global_mean": 3.5, "lowest": 1.0, "highest": 5.0}))
    users = [{"id": "u\u2028 1", "count": 2, "items": ["i1", "i 2"]}, {"id": "u2", "count": 1, "items": ["i1"]}]
    items = [{"id": "i 2", "count": 1}, {"id": "i1", "count": 2}]
    for name, rows in (("users", users), ("items", items)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    assert load(tmp_path, "recommendation") == RatingsAnalysis(
        users=("u\u2028 1", "u2"),
        items=("i 2", "i1"),
        user_counts=(2, 1),
        seen=(("i1", "i 2"), ("i1",)),
        global_mean=3.5,
        lowest=1.0,
        highest=5.0,
    )


def test_an_analysis_cannot_be_changed_in_place():
    analysis = ImageAnalysis(("a",), (0.0,), (1.0,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        analysis.mean = (1.0,)


@pytest.mark.parametrize("task", ["image", "sentiment", "recommendation"])
def test_what_the_tests_make_is_what_the_models_read(task, tmp_path):
    from tests import tiny

    analysis = load(tiny.records_dir(task, tmp_path), task)
    if task == "recommendation":
        assert len(analysis.users) == len(analysis.user_counts) == len(analysis.seen) > 1
        assert analysis.lowest <= analysis.global_mean <= analysis.highest
    else:
        assert len(analysis.classes) == 2
