"""Slices are told for every row and every range, the empty ones too."""

import numpy as np

from models.analysis import ImageAnalysis, RatingsAnalysis, TextAnalysis
from pipeline.release import slices


def strings(*values: str) -> np.ndarray:
    return np.array([v.encode() for v in values], object)


def test_images_are_sliced_by_class_and_a_class_without_rows_is_an_empty_slice():
    analysis = ImageAnalysis(("cat", "dog"), (0.5,), (0.1,))
    found = slices.masks({"label": strings("cat", "cat")}, "image", analysis)
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "label=cat": [True, True],
        "label=dog": [False, False],
    }


def test_each_review_lies_in_exactly_one_range_of_words(tmp_path):
    analysis = TextAnalysis(("rotten", "fresh"), tmp_path)
    lengths = {0: "0-20", 20: "0-20", 21: "21-50", 50: "21-50", 51: "51-150", 400: "151-400", 401: "over 400"}
    rows = {"text": strings(*("word\t\n" * n for n in lengths)), "label": strings(*["fresh"] * len(lengths))}
    words = {n: mask for n, mask in slices.masks(rows, "sentiment", analysis).items() if n.startswith("words=")}
    for row, expected in enumerate(lengths.values()):
        assert [name for name, mask in words.items() if mask[row]] == [f"words={expected}"]


def test_ratings_are_sliced_by_what_the_user_gave_in_training_and_by_unseen_items():
    analysis = RatingsAnalysis(("a", "b", "c"), ("i",), (1, 100, 101), ((), (), ()), 3.0, 1.0, 5.0)
    rows = {"user_id": strings("a", "b", "c", "new"), "item_id": strings("i", "i", "j", "j")}
    found = slices.masks(rows, "recommendation", analysis)
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "user=unseen": [False, False, False, True],
        "user=1-20": [True, False, False, False],
        "user=21-100": [False, True, False, False],
        "user=over 100": [False, False, True, False],
        "item=unseen": [False, False, True, True],
    }
