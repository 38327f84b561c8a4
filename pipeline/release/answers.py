"""Asks the signatures of a model, as a server would, and checks what comes back before anything is computed from it.

A signature is a callable that takes keyword tensors and returns a dict of tensors: one of
`tf.saved_model.load(dir).signatures`, a method of the serving module while training, or a plain function.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

Signatures = Mapping[str, Callable[..., Mapping[str, Any]]]

TOLERANCE = 1e-3  # of probabilities that came through float32
BATCH = 256  # rows whose answer is timed

INPUTS = {
    ("image", "serving_default"): ("image_bytes",),
    ("sentiment", "serving_default"): ("text",),
    ("recommendation", "serving_default"): ("user_id", "item_id"),
    ("recommendation", "recommend"): ("user_id",),
}
OUTPUTS: dict[tuple[str, str], dict[str, type]] = {
    ("image", "serving_default"): {"label": str, "scores": float},
    ("sentiment", "serving_default"): {"label": str, "score": float},
    ("recommendation", "serving_default"): {"rating": float},
    ("recommendation", "recommend"): {"item_ids": str, "scores": float},
}


class Unservable(Exception):
    """What is wrong with a model's answers, in one line that names signature and row."""


def ask(
    signatures: Signatures, task: str, name: str, rows: Mapping[str, np.ndarray], batch: int
) -> tuple[dict[str, np.ndarray], float]:
    """The outputs for all rows, strings as bytes objects and numbers as float64, and the median seconds a batch.

    The first batch, which traces and allocates, is left out of the median where there are more. Raises Unservable.
    """
    function = _signature(signatures, task, name)
    count = len(rows[INPUTS[task, name][0]])
    parts, seconds = [], []
    for start in range(0, count, batch):
        inputs = _tensors(rows, task, name, start, start + batch)
        begin = time.perf_counter()
        try:
            answers = _arrays(function(**inputs))
        except Exception as error:  # a graph may raise anything; whatever it is, this model cannot be served
            raise Unservable(f"{name} fails on {_failure(function, inputs, rows, start, error)}") from error
        seconds.append(time.perf_counter() - begin)
        parts.append(_checked(answers, OUTPUTS[task, name], min(batch, count - start), name))
    try:
        outputs = {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}
    except ValueError:
        raise Unservable(f"{name} answers with another width from one batch to the next") from None
    return outputs, float(np.median(seconds[1:] or seconds))


def probabilities(answers: dict[str, np.ndarray], classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The class numbers [rows] of the labels, and the scores [rows, classes], which must be probabilities that agree.

    A `score` [rows] is the probability of the second of two classes. Raises Unservable.
    """
    if "scores" in answers:
        scores = answers["scores"]
        if scores.shape[1:] != (len(classes),):
            raise Unservable(f"serving_default: scores are {scores.shape[1]} a row for {len(classes)} classes")
    else:
        scores = np.stack([1 - answers["score"], answers["score"]], axis=1)  # [rows, 2]
    if bad := np.count_nonzero(~np.isfinite(scores).all(axis=1)):
        raise Unservable(f"serving_default: scores are not finite for {bad} of {len(scores)} rows")
    if bad := np.count_nonzero((scores < 0).any(axis=1) | (np.abs(scores.sum(axis=1) - 1) > TOLERANCE)):
        raise Unservable(f"serving_default: scores do not sum to 1 (or are negative) for {bad} of {len(scores)} rows")
    number = {name.encode(): i for i, name in enumerate(classes)}
    if strange := sorted(set(answers["label"].tolist()) - set(number)):
        raise Unservable(f"serving_default: label {strange[0]!r} is not one of the {len(classes)} classes")
    labels = np.array([number[label] for label in answers["label"]], np.int64)  # [rows]
    if bad := np.count_nonzero(scores.max(axis=1) - scores[np.arange(len(labels)), labels] > TOLERANCE):
        raise Unservable(
            f"serving_default: label is not the class of the highest score for {bad} of {len(labels)} rows"
        )
    return labels, scores


def recommended(answers: dict[str, np.ndarray]) -> np.ndarray:
    """`item_ids` [users, k]: different items with finite scores; an empty id is a free place. Raises Unservable."""
    items, scores = answers["item_ids"], answers["scores"]
    if items.ndim != 2 or items.shape != scores.shape:
        raise Unservable(f"recommend: item_ids {items.shape} and scores {scores.shape} are not both [users, k]")
    if bad := np.count_nonzero((~np.isfinite(scores) & (items != b"")).any(axis=1)):
        raise Unservable(f"recommend: scores are not finite for {bad} of {len(items)} users")
    for row in items:
        ids = [item for item in row if item]
        if len(set(ids)) < len(ids):
            raise Unservable("recommend: the same item stands twice in a user's list")
    return items


def ratings(answers: dict[str, np.ndarray]) -> np.ndarray:
    """`rating` [rows], finite. Raises Unservable."""
    if bad := np.count_nonzero(~np.isfinite(answers["rating"])):
        raise Unservable(f"serving_default: rating is not finite for {bad} of {len(answers['rating'])} rows")
    return answers["rating"]


def side_by_side(
    models: list[Signatures], task: str, rows: Mapping[str, np.ndarray], rounds: int = 7
) -> list[dict[str, float]]:
    """For each model: signature -> median seconds a batch, timed in turns: a busy machine slows all alike."""
    medians: list[dict[str, float]] = [{} for _ in models]
    for name in (signature for of, signature in INPUTS if of == task):
        inputs = _tensors(rows, task, name, 0, BATCH)
        seconds: list[list[float]] = [[] for _ in models]
        for _ in range(rounds + 1):
            for signatures, times in zip(models, seconds, strict=True):
                begin = time.perf_counter()
                _arrays(signatures[name](**inputs))
                times.append(time.perf_counter() - begin)
        for median, times in zip(medians, seconds, strict=True):
            median[name] = float(np.median(times[1:]))
    return medians


def _signature(signatures: Signatures, task: str, name: str) -> Callable[..., Mapping[str, Any]]:
    if name not in signatures:
        raise Unservable(f"signature {name} is missing (there are: {', '.join(sorted(signatures)) or 'none'})")
    function = signatures[name]
    taken = getattr(function, "structured_input_signature", None)
    if taken is not None and set(taken[1]) != set(INPUTS[task, name]):
        names, wanted = ", ".join(sorted(taken[1])), ", ".join(INPUTS[task, name])
        raise Unservable(f"signature {name} takes {names} instead of {wanted}")
    return function


def _tensors(rows: Mapping[str, np.ndarray], task: str, name: str, start: int, stop: int) -> dict[str, tf.Tensor]:
    return {feature: tf.constant(rows[feature][start:stop], tf.string) for feature in INPUTS[task, name]}


def _arrays(answers: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {output: np.asarray(value) for output, value in answers.items()}  # waits for the result


def _checked(answers: dict[str, np.ndarray], outputs: dict[str, type], count: int, name: str) -> dict[str, np.ndarray]:
    if missing := set(outputs) - set(answers):
        raise Unservable(f"{name} answers {', '.join(sorted(answers))} without {', '.join(sorted(missing))}")
    checked = {}
    for output, kind in outputs.items():
        value = answers[output]
        rank = 2 if output in ("scores", "item_ids") else 1
        if value.ndim != rank or len(value) != count:
            raise Unservable(f"{name}: {output} has shape {value.shape} for {count} rows")
        if (kind is str) != (value.dtype.kind in "OS"):
            wanted = "a string" if kind is str else "a number"
            raise Unservable(f"{name}: {output} is {value.dtype} instead of {wanted}")
        checked[output] = value.astype(object) if kind is str else value.astype(np.float64)
    return checked


def _failure(
    function: Callable, inputs: dict[str, tf.Tensor], rows: Mapping[str, np.ndarray], start: int, error: Exception
) -> str:
    """The first row of the batch that fails on its own, by its id in the source, and how; if none does, the batch."""
    count = len(next(iter(inputs.values())))
    for i in range(count):
        try:
            _arrays(function(**{feature: value[i : i + 1] for feature, value in inputs.items()}))
        except Exception as alone:
            row = rows["id"][start + i].decode(errors="replace") if "id" in rows else start + i
            return f"row {row}: {_one_line(alone)}"
    return f"rows {start} to {start + count - 1} together: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    """The line that tells what happened: of TensorFlow's graph errors the one above the first `[[{{node ...}}]]`."""
    text = getattr(error, "message", None) or str(error)
    lines = [line.strip() for line in text.split("[[{{node")[0].splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1 if '[[{{node' in text else 0]}"[:300]
