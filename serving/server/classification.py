"""Classify: examples to labels and scores, [batch, classes] each."""

from collections.abc import Callable
from typing import Any

import numpy as np
from tensorflow_serving.apis import classification_pb2

from serving.server.call import Call
from serving.server.errors import invalid
from serving.server.examples import serialized
from serving.server.servable import Servable
from serving.server.signatures import check_method, data_type, found, shape_text

METHOD = "tensorflow/serving/classify"
_INPUT = "inputs"
_CLASSES, _SCORES = "classes", "scores"

Answer = Callable[[np.ndarray, np.ndarray], Any]  # labels [n, k] of bytes, scores [n, k] of float32


def message(labels: np.ndarray, scores: np.ndarray) -> classification_pb2.ClassificationResponse:
    """Without a model_spec."""
    response = classification_pb2.ClassificationResponse()
    for row, numbers in zip(labels.tolist(), scores.tolist(), strict=True):
        classes = response.result.classifications.add().classes
        for label, score in zip(row, numbers, strict=True):
            classes.add(label=label, score=score)
    return response


def read(
    servable: Servable,
    request: classification_pb2.ClassificationRequest,
    answer: Answer = message,
    checks: bool = False,
) -> Call:
    """The call's answer is what `answer` makes of labels and scores. Raises RequestError."""
    signature = found(servable, request.model_spec.signature_name)
    fed, fetches = prepare(signature, checks)
    examples = serialized(request.input)
    return Call({fed: examples}, fetches, lambda values: answer(*results(signature, len(examples), values)), "Classify")


def prepare(signature: Any, checks: bool) -> tuple[str, tuple[str, ...]]:
    """The names of the tensor to feed and of those to fetch. Raises RequestError for another kind of signature."""
    if checks:
        check_method(signature, METHOD, "classification")
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if _INPUT not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {signature}")
    fetches = tuple(signature.outputs[alias].name for alias in (_CLASSES, _SCORES) if alias in signature.outputs)
    if not fetches:
        raise invalid(
            f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or "{_SCORES}". '
            f"Signature was: {signature}"
        )
    return signature.inputs[_INPUT].name, fetches


def results(signature: Any, examples: int, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n, k] and scores [n, k] of what `prepare` said to fetch; empty texts or zeros for the one not there."""
    fetched = dict(zip([alias for alias in (_CLASSES, _SCORES) if alias in signature.outputs], values, strict=True))
    for alias, kind in ((_CLASSES, "DT_STRING"), (_SCORES, "DT_FLOAT")):
        if alias in fetched:
            _check(alias, fetched[alias], kind, examples)
    shape = next(iter(fetched.values())).shape
    labels = fetched.get(_CLASSES, np.full(shape, b"", object))
    scores = fetched.get(_SCORES, np.zeros(shape, np.float32))
    if labels.shape != scores.shape:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {labels.shape[1]} vs. {scores.shape[1]}"
        )
    return labels, scores


def _check(alias: str, array: np.ndarray, kind: str, examples: int) -> None:
    if array.ndim != 2:
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {shape_text(array)}")
    if data_type(array) != kind:
        raise invalid(f"Expected {alias} Tensor of {kind}. Got: {data_type(array)}")
    if len(array) != examples:
        raise invalid(f"Expected {alias} output batch size of {examples}. Got: {len(array)}")
