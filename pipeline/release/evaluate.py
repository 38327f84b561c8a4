"""Measures what will be served: the signatures of an export, or of the serving module in memory, on raw rows.

The same function measures the candidate, the live model and, without intervals and slices, each epoch's validation.

    task            metrics
    image           accuracy, precision, recall, f1, auc, loss; on rows of one class accuracy, recall, loss
    sentiment       the same; the second class is the positive one
    recommendation  rmse, mae; ndcg@k, recall@k over the users with a relevant row: rated RELEVANT or more in these rows
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from models import analysis
from pipeline import manifest, records
from pipeline.config import Config
from pipeline.errors import Corrupt, UserError
from pipeline.release import metrics, slices
from pipeline.release.answers import Signatures, Unservable, ask, probabilities, ratings, recommended

RELEVANT = 4.0  # the lowest rating that makes a test row relevant for ranking
AUC_WORK = 500_000  # rows x classes above which AUC gets no interval: one resample would take seconds


@dataclass(frozen=True)
class Evaluation:
    """What a model does on some rows. A figure that could not be measured is absent, never zero."""

    examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95% bootstrap interval of a metric: over rows, for ranking metrics over users."""
    slices: dict[str, dict[str, float]] = field(default_factory=dict)
    """Slice -> its "examples" (rows), for ranking its "users", and the metrics on it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Signature -> median seconds for one batch."""
    users: int = 0
    """Users that the ranking metrics are a mean of."""
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    """True class -> answered class -> rows, without the zeros."""
    problems: tuple[str, ...] = ()
    """Why the model cannot be served, a line each; some or all metrics are then absent."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Evaluation":
        intervals = {name: (low, high) for name, (low, high) in values["intervals"].items()}
        return cls(**{**values, "intervals": intervals, "problems": tuple(values["problems"])})


def evaluate(
    signatures: Signatures,
    rows: Mapping[str, np.ndarray],
    task: str,
    classes: tuple[str, ...] = (),
    k: int = 10,
    intervals: bool = True,
    batch: int = 256,
    masks: Mapping[str, np.ndarray] | None = None,
) -> Evaluation:
    """Asks `signatures` about `rows` (one array [rows] a feature, as `records.load` gives them) and compares.

    `classes` are the class names in order (none for recommendation), `masks` the slices as [rows] booleans
    (`slices.masks`). Whatever is wrong with the model is told in `problems`; this raises nothing for it.
    """
    masks = masks or {}
    empty = Evaluation(
        examples=len(next(iter(rows.values()))),
        slices={name: {"examples": int(mask.sum())} for name, mask in masks.items()},
    )
    if not empty.examples:
        return dataclasses.replace(empty, problems=("there are no rows to evaluate on",))
    if task == "recommendation":
        return _recommendation(empty, signatures, rows, k, intervals, batch, masks)
    return _classification(empty, signatures, rows, task, classes, intervals, batch, masks)


def evaluate_export(export_dir: Path, records_dir: Path, config: Config) -> Evaluation:
    """Evaluates a committed export on the test rows, with intervals and slices.

    Raises UserError when the rows cannot be read, and Corrupt when the export is damaged or TensorFlow cannot load it.
    """
    return evaluate(load_export(export_dir).signatures, **load_rows(records_dir, config))


def load_export(export_dir: Path) -> Any:
    """The verified SavedModel. Hold on to it: its signatures lose their variables when it is gone."""
    manifest.verify(export_dir)
    try:
        return tf.saved_model.load(str(export_dir))
    except Exception as error:  # OSError, ValueError, KeyError and TensorFlow's own, by what is broken
        reason = (str(error).splitlines() or [""])[0]
        text = f"{export_dir}: TensorFlow cannot load it ({type(error).__name__}: {reason}); export it again."
        raise Corrupt(text) from None


def load_rows(records_dir: Path, config: Config) -> dict[str, Any]:
    """What `evaluate` needs besides the signatures, of the test rows of a verified records directory."""
    manifest.verify(records_dir)
    rows = records.load(records_dir, "test", config.task)
    learned = analysis.load(records_dir, config.task)
    classes = () if isinstance(learned, analysis.RatingsAnalysis) else learned.classes
    return {"rows": rows, "task": config.task, "classes": classes, "masks": slices.masks(rows, config.task, learned)}


def write(evaluation: Evaluation, path: Path) -> None:
    manifest.write_file(path, json.dumps(evaluation.to_json(), indent=1))


def _classification(empty, signatures, rows, task, classes, intervals, batch, masks) -> Evaluation:
    number = {name.encode(): i for i, name in enumerate(classes)}
    if unknown := sorted(set(rows["label"].tolist()) - set(number)):
        raise UserError(
            f"The rows hold the label {unknown[0].decode()!r}, which is not one of the classes "
            f"({', '.join(classes)}); run preprocess again."
        )
    labels = np.array([number[label] for label in rows["label"]], np.int64)  # [rows]
    try:
        answers, seconds = ask(signatures, task, "serving_default", rows, batch)
        answered, scores = probabilities(answers, classes)
    except Unservable as error:
        return dataclasses.replace(empty, problems=(str(error),))

    def measure(part: np.ndarray | slice) -> dict[str, float]:
        return _classified(labels[part], answered[part], scores[part])

    order = metrics.score_order(scores) if scores.size <= AUC_WORK else None
    confusion: dict[str, dict[str, int]] = {}
    pairs, counts = np.unique(np.stack([labels, answered]), axis=1, return_counts=True)
    for (true, answer), count in zip(pairs.T, counts, strict=True):
        confusion.setdefault(classes[true], {})[classes[answer]] = int(count)
    return dataclasses.replace(
        empty,
        metrics=_finite(measure(slice(None))),
        intervals=metrics.bootstrap(
            lambda weights: _classified(labels, answered, scores, weights, order), empty.examples
        )
        if intervals
        else {},
        slices={name: {**empty.slices[name], **_finite(measure(mask))} for name, mask in masks.items()},
        seconds={"serving_default": seconds},
        confusion=confusion,
    )


def _classified(labels, answered, scores, weights=None, order=None) -> dict[str, float]:
    """All metrics, for a resample without `order` no AUC; on rows of one class what has a meaning there."""
    found = {"accuracy": metrics.accuracy(labels, answered, weights), "loss": metrics.loss(labels, scores, weights)}
    if len(labels) == 0 or (labels == labels[0]).all():
        return {**found, "recall": found["accuracy"]}  # of this class
    precision, recall, f1 = metrics.precision_recall_f1(labels, answered, scores.shape[1], weights)
    if weights is None or order is not None:
        found["auc"] = metrics.auc(labels, scores, weights, order)
    return {**found, "precision": precision, "recall": recall, "f1": f1}


def _recommendation(empty, signatures, rows, k, intervals, batch, masks) -> Evaluation:
    """Ratings first, then the lists; what one of the two signatures cannot tell is absent."""
    found = empty
    for measure in (_rated, _ranked):
        try:
            found = measure(found, signatures, rows, k, intervals, batch, masks)
        except Unservable as error:
            found = dataclasses.replace(found, problems=(*found.problems, str(error)))
    return found


def _rated(found: Evaluation, signatures, rows, k, intervals, batch, masks) -> Evaluation:
    truth = rows["rating"]
    answers, seconds = ask(signatures, "recommendation", "serving_default", rows, batch)
    answered = ratings(answers)

    def measure(part=slice(None), weights=None) -> dict[str, float]:
        of = truth[part], answered[part], weights
        return {"rmse": metrics.rmse(*of), "mae": metrics.mae(*of)}

    bounds = metrics.bootstrap(lambda w: measure(weights=w), found.examples) if intervals else {}
    return _with(found, measure(), bounds, {n: measure(mask) for n, mask in masks.items()}, "serving_default", seconds)


def _ranked(found: Evaluation, signatures, rows, k, intervals, batch, masks) -> Evaluation:
    relevant: dict[bytes, set[bytes]] = {}
    for user, item, rating in zip(rows["user_id"], rows["item_id"], rows["rating"], strict=True):
        if rating >= RELEVANT:
            relevant.setdefault(user, set()).add(item)
    users = np.array(list(relevant) or list(rows["user_id"][:1]), object)  # somebody is asked, so that a fault shows
    answers, seconds = ask(signatures, "recommendation", "recommend", {"id": users, "user_id": users}, batch)
    lists = recommended(answers)[:, :k]  # [users, k]
    if not relevant:
        return _with(found, {}, {}, {}, "recommend", seconds)
    hits = np.zeros((len(users), k), bool)  # a list shorter than k has no hits behind its end
    for row, user, items in zip(hits, users, lists, strict=True):
        row[: len(items)] = [item in relevant[user] for item in items]
    count = np.array([len(items) for items in relevant.values()])  # [users]
    values = {  # [users] each
        f"ndcg@{k}": metrics.ndcg_at_k(hits, count),
        f"recall@{k}": metrics.recall_at_k(hits, count),
    }

    def measure(part=slice(None), weights=None) -> dict[str, float]:
        return {name: metrics.mean(value[part], weights) for name, value in values.items()}

    parts = {}
    for name, mask in masks.items():
        inside = set(rows["user_id"][mask])
        if inside.isdisjoint(rows["user_id"][~mask]):  # a slice of users; of single rows a user's list says nothing
            chosen = np.array([user in inside for user in users], bool)
            parts[name] = {"users": int(chosen.sum()), **measure(chosen)}
    bounds = metrics.bootstrap(lambda w: measure(weights=w), len(users)) if intervals else {}
    return dataclasses.replace(_with(found, measure(), bounds, parts, "recommend", seconds), users=len(users))


def _with(found: Evaluation, values, bounds, parts, signature: str, seconds: float) -> Evaluation:
    return dataclasses.replace(
        found,
        metrics={**found.metrics, **_finite(values)},
        intervals={**found.intervals, **bounds},
        slices={name: {**known, **_finite(parts.get(name, {}))} for name, known in found.slices.items()},
        seconds={**found.seconds, signature: seconds},
    )


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if np.isfinite(value)}
