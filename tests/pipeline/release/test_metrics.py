"""Each figure equals scikit-learn's, or the sum worked out by hand; intervals cover what they should."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from pipeline.release import metrics


def draw(classes: int, rows: int = 500, seed: int = 0):
    """Labels, probabilities with many ties, and answers that are right more often than not."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=rows)
    raw = np.round(random.random((rows, classes)) + 0.5 * np.eye(classes)[labels], 1) + 0.1
    scores = raw / raw.sum(axis=1, keepdims=True)
    return labels, scores, scores.argmax(axis=1)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_classification_figures_equal_those_of_scikit_learn(classes):
    labels, scores, answers = draw(classes)
    average = "binary" if classes == 2 else "macro"
    expected = sk.precision_recall_fscore_support(labels, answers, average=average, zero_division=0)[:3]
    assert metrics.precision_recall_f1(labels, answers, classes) == pytest.approx(expected, abs=1e-12)
    assert metrics.accuracy(labels, answers) == pytest.approx(sk.accuracy_score(labels, answers), abs=1e-12)
    assert metrics.loss(labels, scores) == pytest.approx(sk.log_loss(labels, scores), abs=1e-9)
    reference = sk.roc_auc_score(labels, scores[:, 1] if classes == 2 else scores, multi_class="ovr")
    assert metrics.auc(labels, scores) == pytest.approx(reference, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_weights_count_rows_as_if_they_were_repeated(classes):
    labels, scores, answers = draw(classes, rows=60)
    weights = np.random.default_rng(1).integers(4, size=60).astype(float)
    often = np.repeat(np.arange(60), weights.astype(int))
    assert metrics.auc(labels, scores, weights) == pytest.approx(metrics.auc(labels[often], scores[often]))
    assert metrics.loss(labels, scores, weights) == pytest.approx(metrics.loss(labels[often], scores[often]))
    assert metrics.accuracy(labels, answers, weights) == pytest.approx(metrics.accuracy(labels[often], answers[often]))
    assert metrics.precision_recall_f1(labels, answers, classes, weights) == pytest.approx(
        metrics.precision_recall_f1(labels[often], answers[often], classes)
    )


def test_a_class_without_rows_and_answers_does_not_count_in_the_macro_average():
    labels, answers = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    # Class 0: precision 1, recall 1/2, F1 2/3. Class 1: 2/3, 1, 4/5. Class 2 never occurs.
    assert metrics.precision_recall_f1(labels, answers, 3) == pytest.approx((5 / 6, 3 / 4, 11 / 15))


def test_a_positive_class_that_is_never_answered_has_precision_zero_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.precision_recall_f1(np.array([0, 1]), np.array([0, 0]), 2) == (0, 0, 0)


def test_auc_counts_a_tie_as_half_a_win():
    # Pairs of (positive, negative): .8 > .5, .8 > .2, .5 = .5, .5 > .2: 3.5 of 4.
    scores = np.array([0.8, 0.5, 0.5, 0.2])
    assert metrics.auc(np.array([1, 1, 0, 0]), np.stack([1 - scores, scores], axis=1)) == 3.5 / 4


def test_auc_of_one_class_is_not_a_number():
    assert np.isnan(metrics.auc(np.array([1, 1]), np.array([[0.5, 0.5], [0.1, 0.9]])))


def test_a_score_of_zero_for_the_truth_costs_as_much_as_a_score_of_1e_7():
    assert metrics.loss(np.array([0]), np.array([[0.0, 1.0]])) == pytest.approx(-np.log(1e-7))


def test_rating_errors_equal_the_sums_worked_out_by_hand():
    truth, answers = np.array([1, 5, 3], np.float32), np.array([2.0, 3.0, 3.0])
    assert metrics.rmse(truth, answers) == pytest.approx(np.sqrt(5 / 3))
    assert metrics.mae(truth, answers) == pytest.approx(1.0)


def test_ranking_figures_equal_the_sums_worked_out_by_hand():
    hits = np.array([[True, False, True], [False, False, False], [True, True, True]])
    relevant = np.array([2, 1, 5])  # the third user has more relevant items than places
    ideal = 1 + 1 / np.log2(3)
    assert metrics.ndcg_at_k(hits, relevant) == pytest.approx([(1 + 1 / np.log2(4)) / ideal, 0, 1])
    assert metrics.recall_at_k(hits, relevant) == pytest.approx([1, 0, 3 / 5])


def test_ndcg_equals_that_of_scikit_learn():
    random = np.random.default_rng(0)
    relevance, scores = random.integers(2, size=(20, 30)), random.random((20, 30))
    relevance[:, 0] = 1
    hits = np.take_along_axis(relevance, np.argsort(-scores, axis=1), axis=1)[:, :10] == 1
    assert metrics.ndcg_at_k(hits, relevance.sum(axis=1)).mean() == pytest.approx(
        sk.ndcg_score(relevance, scores, k=10)
    )


def test_the_bootstrap_interval_of_a_share_is_as_wide_as_theory_says():
    hit = np.arange(2000) < 1600
    low, high = metrics.bootstrap(lambda w: {"accuracy": metrics.mean(hit, w)}, 2000)["accuracy"]
    half = 1.96 * np.sqrt(0.8 * 0.2 / 2000)
    assert low < 0.8 < high
    assert high - low == pytest.approx(2 * half, rel=0.2)


def test_the_bootstrap_gives_the_same_interval_every_time():
    values = np.random.default_rng(0).random(50)
    first, second = (metrics.bootstrap(lambda w: {"mean": metrics.mean(values, w)}, 50) for _ in range(2))
    assert first == second


def test_a_figure_that_is_never_defined_gets_no_interval():
    assert metrics.bootstrap(lambda _: {"auc": np.nan}, 5) == {}
