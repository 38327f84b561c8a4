"""Evaluation asks what a client would ask, measures right, is quick, and names what is wrong with a model."""

import json
import time

import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.release.answers import side_by_side
from pipeline.release.evaluate import Evaluation, evaluate

CLASSES = ("cat", "dog", "emu")
REVIEWS = ("rotten", "fresh")


def strings(values) -> np.ndarray:
    return np.array([v if isinstance(v, bytes) else str(v).encode() for v in values], object)


def images(count: int, classes: tuple[str, ...] = CLASSES) -> dict[str, np.ndarray]:
    """Row i has class i mod classes, and that number as its image."""
    numbers = [i % len(classes) for i in range(count)]
    return {"id": strings(range(count)), "image_bytes": strings(numbers), "label": strings(classes[n] for n in numbers)}


def classifier(classes: tuple[str, ...] = CLASSES, wrong_every: int = 5, seed: int = 0):
    """Reads the class off the image; about one answer in `wrong_every` is drawn at random."""
    random = np.random.default_rng(seed)

    def serve(image_bytes):
        numbers = np.array([int(b) for b in image_bytes.numpy()])
        scores = random.random((len(numbers), len(classes))) + 0.01
        sure = random.random(len(numbers)) > 1 / wrong_every
        scores[sure, numbers[sure]] += 2
        scores /= scores.sum(axis=1, keepdims=True)
        return {"label": strings(classes[n] for n in scores.argmax(axis=1)), "scores": scores.astype(np.float32)}

    return {"serving_default": serve}


def altered(**changes):
    """The classifier, with outputs replaced by functions of [the outputs]."""

    def serve(image_bytes):
        answers = classifier()["serving_default"](image_bytes)
        answers |= {name: change(answers) for name, change in changes.items()}
        return {name: value for name, value in answers.items() if value is not None}

    return {"serving_default": serve}


def test_a_model_that_is_always_right_scores_one_whatever_the_batch_size():
    def serve(text):
        score = tf.cast(tf.strings.regex_full_match(text, "good.*"), tf.float32)
        return {"label": tf.where(score > 0.5, "fresh", "rotten"), "score": score}

    rows = {"text": strings(["good", "bad", "good film"] * 5), "label": strings(["fresh", "rotten", "fresh"] * 5)}
    for batch in (1, 4, 15, 256):
        found = evaluate({"serving_default": serve}, rows, "sentiment", REVIEWS, batch=batch)
        assert found.problems == ()
        assert found.metrics == {"accuracy": 1, "loss": 0, "precision": 1, "recall": 1, "f1": 1, "auc": 1}
        assert found.confusion == {"fresh": {"fresh": 10}, "rotten": {"rotten": 5}}


def test_the_second_class_of_a_review_is_the_positive_one():
    def serve(text):  # says fresh twice, once rightly; 3 rows are fresh
        score = tf.cast(tf.strings.regex_full_match(text, "say fresh.*"), tf.float32) * 0.8
        return {"label": tf.where(score > 0.5, "fresh", "rotten"), "score": score}

    rows = {
        "text": strings(["say fresh 1", "say fresh 2", "3", "4", "5"]),
        "label": strings(["fresh", "rotten", "fresh", "fresh", "rotten"]),
    }
    found = evaluate({"serving_default": serve}, rows, "sentiment", REVIEWS, intervals=False)
    assert found.metrics["precision"] == pytest.approx(1 / 2)
    assert found.metrics["recall"] == pytest.approx(1 / 3)


def test_each_interval_holds_its_metric():
    found = evaluate(classifier(), images(600), "image", CLASSES)
    assert set(found.intervals) == set(found.metrics) == {"accuracy", "precision", "recall", "f1", "auc", "loss"}
    for name, (low, high) in found.intervals.items():
        assert low < found.metrics[name] < high


def test_an_evaluation_survives_json():
    mask = {"label=cat": np.arange(60) % 3 == 0, "empty": np.zeros(60, bool)}
    found = evaluate(classifier(), images(60), "image", CLASSES, masks=mask)
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_slice_is_measured_on_its_own_rows_and_an_empty_one_has_no_metrics():
    mask = {"label=cat": np.arange(60) % 3 == 0, "half": np.arange(60) < 30, "empty": np.zeros(60, bool)}
    found = evaluate(classifier(), images(60), "image", CLASSES, intervals=False, masks=mask)
    right = found.confusion["cat"]["cat"] / 20
    assert found.slices["label=cat"]["accuracy"] == pytest.approx(right)
    assert set(found.slices["label=cat"]) == {"examples", "accuracy", "recall", "loss"}
    assert found.slices["label=cat"]["recall"] == pytest.approx(right)
    assert found.slices["half"]["examples"] == 30
    assert "auc" in found.slices["half"]
    assert found.slices["empty"] == {"examples": 0}


def test_ten_thousand_rows_of_ten_classes_are_evaluated_in_two_seconds():
    classes = tuple("abcdefghij")
    rows = images(10_000, classes)
    answers = classifier(classes)["serving_default"](tf.constant(rows["image_bytes"]))
    served = iter(range(0, 10_000, 256))

    def serve(image_bytes):  # answers made before, so that only the evaluation is timed
        start = next(served)
        return {name: value[start : start + 256] for name, value in answers.items()}

    begin = time.process_time()
    found = evaluate({"serving_default": serve}, rows, "image", classes)
    assert time.process_time() - begin < 2
    assert len(found.intervals) == 6


def test_no_rows_is_a_problem_and_not_a_pass():
    rows = {"image_bytes": strings([]), "label": strings([])}
    found = evaluate(classifier(), rows, "image", CLASSES)
    assert found.problems == ("there are no rows to evaluate on",)
    assert found.metrics == {}


def test_a_label_of_the_rows_that_is_no_class_is_the_user_s_to_mend():
    with pytest.raises(UserError, match="'emu'"):
        evaluate(classifier(), images(6), "image", ("cat", "dog"))


WRONG = {
    "signature serving_default is missing": {"classify": lambda **_: {}},
    "serving_default answers label without scores": altered(scores=lambda a: None),
    "scores are 2 a row for 3 classes": altered(scores=lambda a: a["scores"][:, :2]),
    "scores has shape (10,) for 10 rows": altered(scores=lambda a: a["scores"][:, 0]),
    "label has shape (9,) for 10 rows": altered(label=lambda a: a["label"][1:]),
    "label is int64 instead of a string": altered(label=lambda a: np.arange(10)),
    "scores are not finite for 10 of 10 rows": altered(scores=lambda a: a["scores"] * np.nan),
    "scores do not sum to 1 (or are negative) for 10 of 10 rows": altered(scores=lambda a: a["scores"] * 2),
    "label b'gnu' is not one of the 3 classes": altered(label=lambda a: strings(["gnu"] * 10)),
    "label is not the class of the highest score for": altered(label=lambda a: np.roll(a["label"], 1)),
}


@pytest.mark.parametrize(("told", "signatures"), WRONG.items())
def test_what_is_wrong_with_the_answers_is_named_and_nothing_is_measured(told, signatures):
    found = evaluate(signatures, images(10), "image", CLASSES)
    assert len(found.problems) == 1
    assert told in found.problems[0]
    assert found.metrics == found.intervals == {}
    assert found.examples == 10


def test_a_graph_that_fails_on_one_row_is_told_with_that_row_s_id():
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(image_bytes):
        scores = tf.gather(tf.eye(3), tf.strings.to_number(image_bytes, tf.int32))
        return {"label": tf.gather(tf.constant(CLASSES), tf.argmax(scores, 1)), "scores": scores}

    rows = images(10)
    rows["image_bytes"][7] = b"3"
    found = evaluate({"serving_default": serve}, rows, "image", CLASSES, batch=4)
    assert found.problems == ("serving_default fails on row 7: InvalidArgumentError: indices[0] = 3 is not in [0, 3)",)


# Recommendation: users u0.. rated items; a model knows everything, so its faults are what is tested.

RATED = [("u0", "a", 5), ("u0", "b", 2), ("u1", "a", 4), ("u1", "c", 4), ("u2", "b", 1)]  # u2 has no relevant row


def ratings_rows() -> dict[str, np.ndarray]:
    users, items, ratings = zip(*RATED, strict=True)
    return {
        "id": strings(range(len(RATED))),
        "user_id": strings(users),
        "item_id": strings(items),
        "rating": np.array(ratings, np.float32),
    }


def recommender(lists: dict[str, list[str]], off_by: float = 0.5, scores=None):
    known = {(u, i): r for u, i, r in RATED}

    def serve(user_id, item_id):
        pairs = zip(user_id.numpy(), item_id.numpy(), strict=True)
        return {"rating": np.array([known[u.decode(), i.decode()] + off_by for u, i in pairs], np.float32)}

    def recommend(user_id):
        items = np.array([strings(lists[u.decode()]) for u in user_id.numpy()])
        return {"item_ids": items, "scores": np.ones(items.shape, np.float32) if scores is None else scores(items)}

    return {"serving_default": serve, "recommend": recommend}


GOOD = {"u0": ["a", "c"], "u1": ["b", "c"]}


def test_ranking_is_a_mean_over_the_users_with_a_relevant_row():
    found = evaluate(recommender(GOOD), ratings_rows(), "recommendation")
    assert found.problems == ()
    assert found.users == 2
    first = 1.0  # u0: its one relevant item leads
    second = (1 / np.log2(3)) / (1 + 1 / np.log2(3))  # u1: one of two relevant items, in second place
    assert found.metrics == pytest.approx(
        {"rmse": 0.5, "mae": 0.5, "ndcg@10": (first + second) / 2, "recall@10": (1 + 1 / 2) / 2}
    )
    assert set(found.intervals) == set(found.metrics)
    assert set(found.seconds) == {"serving_default", "recommend"}


def test_only_the_first_k_places_of_a_list_count():
    found = evaluate(recommender({"u0": ["c", "a"], "u1": ["b", "c"]}), ratings_rows(), "recommendation", k=1)
    assert found.metrics["ndcg@1"] == found.metrics["recall@1"] == 0


def test_a_list_shorter_than_k_is_not_held_against_fewer_places():
    found = evaluate(recommender({"u0": ["a"], "u1": ["a"]}), ratings_rows(), "recommendation", k=10)
    assert found.metrics["ndcg@10"] == pytest.approx((1 + 1 / (1 + 1 / np.log2(3))) / 2)


def test_a_slice_of_users_has_ranking_figures_and_one_of_single_rows_has_none():
    masks = {"user": np.array([True, True, False, False, False]), "item": np.array([True, False, True, False, False])}
    found = evaluate(recommender(GOOD), ratings_rows(), "recommendation", masks=masks)
    assert found.slices["user"] == pytest.approx(
        {"examples": 2, "rmse": 0.5, "mae": 0.5, "users": 1, "ndcg@10": 1, "recall@10": 1}
    )
    assert found.slices["item"] == pytest.approx({"examples": 2, "rmse": 0.5, "mae": 0.5})


def test_places_left_free_in_a_list_are_not_recommendations():
    lists = {"u0": ["a", ""], "u1": ["", ""]}
    model = recommender(lists, scores=lambda items: np.where(items == b"", -np.inf, 1.0))
    found = evaluate(model, ratings_rows(), "recommendation")
    assert found.problems == ()
    assert found.metrics["recall@10"] == 0.5


@pytest.mark.parametrize(
    ("told", "model"),
    {
        "the same item stands twice": recommender({"u0": ["a", "a"], "u1": ["b", "c"]}),
        "recommend: scores are not finite for 2 of 2 users": recommender(
            GOOD, scores=lambda i: np.full(i.shape, np.nan)
        ),
        "recommend: item_ids (2, 2) and scores (2, 1)": recommender(
            GOOD, scores=lambda items: np.ones((len(items), 1))
        ),
        "recommend fails on row u0: KeyError": recommender({}),
    }.items(),
)
def test_a_fault_in_the_lists_is_named_and_the_ratings_are_still_measured(told, model):
    found = evaluate(model, ratings_rows(), "recommendation")
    assert told in found.problems[0]
    assert set(found.metrics) == {"rmse", "mae"}


def test_a_rating_that_is_not_finite_is_named_and_the_lists_are_still_measured():
    found = evaluate(recommender(GOOD, off_by=np.nan), ratings_rows(), "recommendation")
    assert found.problems == ("serving_default: rating is not finite for 5 of 5 rows",)
    assert set(found.metrics) == {"ndcg@10", "recall@10"}


def test_models_are_timed_in_turns_on_every_signature():
    calls = []

    def model(name):
        return {
            "serving_default": lambda **_: calls.append(name) or {},
            "recommend": lambda **_: calls.append(name) or {},
        }

    found = side_by_side([model("a"), model("b")], "recommendation", ratings_rows(), rounds=2)
    assert calls == ["a", "b"] * 6
    assert [set(seconds) for seconds in found] == [{"serving_default", "recommend"}] * 2
