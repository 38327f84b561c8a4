"""Figures of merit in float64 numpy, each a pure function of truth and answer, and their bootstrap interval.

`weights` [rows] counts how often each row occurs (all once by default): a resample of the bootstrap is nothing but
other weights, so that one definition serves the value and its interval. A figure that is not defined (AUC of one class,
the mean of nothing) is NaN.

    accuracy        share of rows whose answer is the truth
    precision       TP / (TP + FP)               0 where nothing is divided by nothing. Of two classes: of class 1;
    recall          TP / (TP + FN)               of more: the mean over those that occur in truth or answers
    f1              2 TP / (2 TP + FP + FN)
    auc             P(score of a positive > score of a negative) + P(equal) / 2; of more than two classes: the mean of
                    one against the rest, over the classes that have both
    loss            mean of -ln(score of the true class), scores below 1e-7 counted as 1e-7
    rmse, mae       of ratings
    ndcg@k          sum over hits at rank i = 1..k of 1 / log2(i + 1), over the same sum for a perfect list, per user
    recall@k        hits among the first k over relevant items, per user
"""

from collections.abc import Callable

import numpy as np

LOWER_IS_BETTER = frozenset({"loss", "rmse", "mae"})
RESAMPLES = 300
PERCENT = 95.0
Weights = np.ndarray | None


def mean(values: np.ndarray, weights: Weights = None) -> float:
    """Of `values` [rows]."""
    if weights is None:
        return float(values.mean(dtype=np.float64)) if len(values) else np.nan
    return float(weights @ values / weights.sum())


def accuracy(labels: np.ndarray, answers: np.ndarray, weights: Weights = None) -> float:
    """Both [rows] of class numbers."""
    return mean(labels == answers, weights)


def precision_recall_f1(
    labels: np.ndarray, answers: np.ndarray, classes: int, weights: Weights = None
) -> tuple[float, float, float]:
    """Both [rows] of class numbers below `classes`."""
    hit = labels == answers
    true, answered, right = (
        np.bincount(rows, None if w is None else w, minlength=classes).astype(np.float64)  # [classes]
        for rows, w in ((labels, weights), (answers, weights), (labels[hit], None if weights is None else weights[hit]))
    )
    judged = np.array([1]) if classes == 2 else np.flatnonzero(true + answered)
    if not len(labels):
        return np.nan, np.nan, np.nan
    ratios = (_ratio(right, answered), _ratio(right, true), _ratio(2 * right, true + answered))
    precision, recall, f1 = (float(r[judged].mean()) for r in ratios)
    return precision, recall, f1


def auc(labels: np.ndarray, scores: np.ndarray, weights: Weights = None, order: np.ndarray | None = None) -> float:
    """`labels` [rows] class numbers, `scores` [rows, classes]; `order`: score_order(scores), if known already."""
    order = score_order(scores) if order is None else order
    columns = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    areas = np.array([_area(labels == c, scores[:, c], order[:, c], weights) for c in columns])
    return float(areas[np.isfinite(areas)].mean()) if np.isfinite(areas).any() else np.nan


def score_order(scores: np.ndarray) -> np.ndarray:
    """The rows of `scores` [rows, classes] from the lowest score to the highest, in each class; [rows, classes]."""
    return np.argsort(scores, axis=0, kind="stable")


def loss(labels: np.ndarray, scores: np.ndarray, weights: Weights = None) -> float:
    """`labels` [rows] class numbers, `scores` [rows, classes]; in nats."""
    true = scores[np.arange(len(labels)), labels].astype(np.float64)  # [rows]
    return mean(-np.log(np.maximum(true, 1e-7)), weights)


def rmse(truth: np.ndarray, answers: np.ndarray, weights: Weights = None) -> float:
    """Both [rows], in the unit of the ratings."""
    return float(np.sqrt(mean(np.square(truth.astype(np.float64) - answers), weights)))


def mae(truth: np.ndarray, answers: np.ndarray, weights: Weights = None) -> float:
    """Both [rows], in the unit of the ratings."""
    return mean(np.abs(truth.astype(np.float64) - answers), weights)


def ndcg_at_k(hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """`hits` [users, k]: is the item of this rank relevant; `relevant` [users]: how many are, over 0; [users]."""
    gains = 1 / np.log2(np.arange(2, hits.shape[1] + 2))  # [k]
    ideal = np.concatenate([[0.0], np.cumsum(gains)])  # [k + 1]: of a perfect list with that many relevant items
    return hits @ gains / ideal[np.minimum(relevant, hits.shape[1])]


def recall_at_k(hits: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """As `ndcg_at_k`; above k relevant items even a perfect list stays below 1."""
    return hits.sum(axis=1) / relevant.astype(np.float64)


def bootstrap(measure: Callable[[np.ndarray], dict[str, float]], rows: int) -> dict[str, tuple[float, float]]:
    """The percentile interval (2.5% to 97.5%) of each figure that `measure(weights [rows])` gives, over resampled rows.

    The same number of rows gives the same resamples, so that two models are judged on the same ones. Figures
    that are NaN in a resample are left out of it.
    """
    random = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(RESAMPLES):
        weights = np.bincount(random.integers(rows, size=rows), minlength=rows).astype(np.float64)  # [rows]
        for name, value in measure(weights).items():
            if np.isfinite(value):
                drawn.setdefault(name, []).append(value)
    tail = (100 - PERCENT) / 2
    bounds = {name: np.percentile(values, [tail, 100 - tail]) for name, values in drawn.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def _area(positive: np.ndarray, scores: np.ndarray, order: np.ndarray, weights: Weights) -> float:
    """AUC by ranks: the positives of a group of equal scores beat the negatives below it and tie with those inside."""
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # last row of each group
    positives = (positive if weights is None else weights * positive)[order].astype(np.float64)  # [rows]
    every = np.ones(len(order)) if weights is None else weights[order]
    up_to = np.cumsum(positives)[ends], np.cumsum(every - positives)[ends]  # [groups] each
    inside_positive, inside_negative = (np.diff(total, prepend=0.0) for total in up_to)
    pairs = up_to[0][-1] * up_to[1][-1] if len(order) else 0.0
    return float(inside_positive @ (up_to[1] - inside_negative / 2) / pairs) if pairs else np.nan


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
