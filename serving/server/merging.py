"""Several calls as one run of TensorFlow: inputs joined along the first dimension, outputs taken apart again."""

import itertools
from collections.abc import Sequence

import numpy as np

from serving.server import metrics
from serving.server.batching_parameters import BatchingParameters
from serving.server.call import Call
from serving.server.errors import Code, RequestError, invalid
from serving.server.servable import Feeds, Servable


def rows_of(feeds: Feeds) -> int:
    """The size of a call: the first dimension, which all inputs must share. Raises RequestError."""
    rows = None
    for array in feeds.values():
        if not array.ndim:
            raise invalid("Batching Run() input tensors must have at least one dimension")
        if rows is None:
            rows = len(array)
        elif len(array) != rows:
            raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return rows or 0


def run_alone(servable: Servable, call: Call) -> list[np.ndarray]:
    """The values of one call as a batch of its own, padded as one; as it is where the servable does not batch.

    Raises RequestError.
    """
    parameters = servable.batching
    if parameters is None:
        return servable.run(call.feeds, call.fetches)
    rows = rows_of(call.feeds)
    check_size(rows, parameters)
    step = parameters.largest
    starts = range(0, max(rows, 1), step)
    parts = [{name: array[start : start + step] for name, array in call.feeds.items()} for start in starts]
    values = [run_merged(servable, [part], call.fetches, parameters, None)[0] for part in parts]
    return joined(values)


def check_size(rows: int, parameters: BatchingParameters) -> None:
    if rows > parameters.max_batch_size:
        raise invalid(f"Task size {rows} is larger than maximum input batch size {parameters.max_batch_size}")


def run_merged(
    servable: Servable,
    calls: Sequence[Feeds],
    fetches: tuple[str, ...],
    parameters: BatchingParameters,
    timeout_ms: int | None,
    here: bool = False,
) -> list[list[np.ndarray]]:
    """The values of each call, in the order of `fetches`; `here`: see Servable.run_here.

    Raises RequestError for all of them together.
    """
    sizes = [rows_of(feeds) for feeds in calls]
    rows = sum(sizes)
    padding = parameters.padded(rows) - rows if rows else 0  # without a row there is nothing to repeat
    metrics.batch(rows + padding, padding)
    merged = {
        name: _merged(name, [feeds[name] for feeds in calls], padding, parameters.pad_variable_length_inputs)
        for name in calls[0]
    }
    values = servable.run_here(merged, fetches) if here else servable.run(merged, fetches, timeout_ms)
    for value in values:
        if not value.ndim:
            raise RequestError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(value) != rows + padding:
            raise RequestError(
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                "input tensors",
            )
    if len(calls) == 1 and not padding:
        return [values]
    starts = np.cumsum([0, *sizes]).tolist()
    return [[value[a:b] for value in values] for a, b in itertools.pairwise(starts)]


def joined(parts: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The values of a call that was run in parts."""
    return parts[0] if len(parts) == 1 else [np.concatenate(values) for values in zip(*parts, strict=True)]


def _merged(name: str, arrays: list[np.ndarray], padding: int, even_out: bool) -> np.ndarray:
    """[n_i, ...] of every call -> [sum of n_i + padding, ...]; the padding repeats the first row of the last call."""
    if any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
        if not even_out or any(array.ndim != arrays[0].ndim for array in arrays):
            raise RequestError(
                Code.FAILED_PRECONDITION,
                f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off."
                "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
                "have equal dimensions starting with the first dim.",
            )
        largest = np.max([array.shape[1:] for array in arrays], axis=0).tolist()
        arrays = [_evened(array, largest) for array in arrays]
    if padding:
        last = next(array for array in reversed(arrays) if len(array))
        arrays = [*arrays, np.repeat(last[:1], padding, axis=0)]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _evened(array: np.ndarray, shape: list[int]) -> np.ndarray:
    """[n, ...] -> [n, *shape], with zeros, or empty strings, at the ends."""
    evened = np.full([len(array), *shape], b"" if array.dtype == object else 0, array.dtype)
    evened[tuple(map(slice, array.shape))] = array
    return evened
