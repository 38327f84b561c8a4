"""Mini-batches: the training rows as tensors in memory, gathered in an order that is a pure function of (seed, epoch).

Decoding, tokenising and table look-ups do not depend on the epoch, so they are done once a run. A batch is then a
list of row numbers; resuming in the middle of an epoch is starting that list further on.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from models.analysis import Analysis
from models.spec import ModelSpec
from pipeline import records
from pipeline.config import Config
from pipeline.errors import DATA, UserError

CHUNK = 1024  # rows prepared at a time
WINDOW = 64  # batches among which texts are sorted by length, so that a batch holds texts of similar length


@dataclass(frozen=True)
class Rows:
    """The prepared training rows; `lengths` [rows] where a row's size varies, else None."""

    inputs: dict[str, tf.Tensor | tf.RaggedTensor]
    target: tf.Tensor
    lengths: np.ndarray | None

    def __len__(self) -> int:
        return len(self.target)


def prepare(records_dir: Path, config: Config, spec: ModelSpec, analysis: Analysis) -> Rows:
    """Reads the training split and turns it into model inputs, once."""
    features = records.load(records_dir, "train", config.task)
    module = spec.inputs(config.model, analysis)

    @tf.function(reduce_retracing=True)
    def convert(batch):
        return module(batch), spec.target(batch, analysis)

    inputs, targets = [], []
    for start in range(0, len(features["id"]), CHUNK):
        chunk = {name: tf.constant(values[start : start + CHUNK]) for name, values in features.items()}
        x, y = convert(chunk)
        inputs.append(x)
        targets.append(y)
    joined = {name: tf.concat([part[name] for part in inputs], axis=0) for name in inputs[0]}
    target = tf.concat(targets, axis=0)
    if target.dtype.is_integer and bool(tf.reduce_any(target < 0)):
        raise UserError(
            f"{records_dir}: a training label is none of the classes of analysis.json; run preprocess again.", DATA
        )
    ragged = next((value for value in joined.values() if isinstance(value, tf.RaggedTensor)), None)
    return Rows(joined, target, None if ragged is None else ragged.row_lengths().numpy())


def samples(rows: Rows, config: Config, count: int = 32) -> list[dict[str, tf.Tensor]]:
    """`count` batches of inputs as they are, without augmentation, for statistics over the training rows."""
    size = config.train.batch_size
    numbers = order(config.train.seed, 0, len(rows), size, rows.lengths)[: count * size]
    return [_gather(rows.inputs, numbers[i : i + size]) for i in range(0, len(numbers), size)]


def _gather(inputs: dict, numbers) -> dict[str, tf.Tensor]:
    parts = {name: tf.gather(value, numbers) for name, value in inputs.items()}
    return {name: part.to_tensor(0) if isinstance(part, tf.RaggedTensor) else part for name, part in parts.items()}


def order(seed: int, epoch: int, rows: int, batch: int, lengths: np.ndarray | None = None) -> np.ndarray:
    """Row numbers of an epoch, [rows] int64: a permutation. With lengths, windows of it are sorted by length and the
    batches shuffled, so that padding is small and the order still differs in each epoch."""
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    permutation = random.permutation(rows)
    if lengths is None:
        return permutation
    window = batch * WINDOW
    parts = [permutation[i : i + window] for i in range(0, rows, window)]
    ordered = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    full = rows // batch * batch  # the short batch stays last
    batches = ordered[:full].reshape(-1, batch)
    return np.concatenate([batches[random.permutation(len(batches))].ravel(), ordered[full:]])


def weighted_batches(order: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers [steps, batch] and weights [steps, batch] that sum to 1 in each step.

    The last batch is filled up with the first rows of the order, of weight 0: shapes are static, every row still counts
    once an epoch, and batch normalisation sees a whole batch of different rows.
    """
    steps = -(-len(order) // batch)
    counts = np.zeros((steps, batch), np.float32)
    counts.flat[: len(order)] = 1.0
    filled = np.resize(order, steps * batch)  # goes on with the first rows where the order ends
    return filled.reshape(steps, batch), counts / counts.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Part:
    """Some updates of one epoch, padded to the same length in every call so that a compiled call has one shape."""

    numbers: Any  # [calls, share] int64: the rows of each batch
    weights: Any  # [calls, share] float32: sum to 1 over all replicas
    draws: Any  # [calls, share, draws] float32: random numbers of each row
    count: tf.Tensor  # how many of the calls are updates


def parts(rows: Rows, config: Config, spec: ModelSpec, strategy: tf.distribute.Strategy) -> Callable[[int, int], Part]:
    """A function (update number, count) -> the next `count` batches, at most steps_per_call and within one epoch.

    Each replica gets an equal, contiguous part of every global batch.
    """
    train, size = config.train, config.train.batch_size
    per_epoch, share = -(-len(rows) // size), size // strategy.num_replicas_in_sync
    calls = min(train.steps_per_call, per_epoch)

    @functools.lru_cache(maxsize=1)
    def epoch_arrays(epoch: int) -> tuple[np.ndarray, ...]:
        numbers, weights = weighted_batches(order(train.seed, epoch, len(rows), size, rows.lengths), size)
        random = np.random.Generator(np.random.PCG64([train.seed, epoch, 1]))
        draws = random.random((len(rows), spec.draws), np.float32)[numbers]  # a row's, wherever it stands in the order
        return numbers, weights, draws

    def part(step: int, count: int) -> Part:
        epoch, done = divmod(step, per_epoch)

        def placed(array: np.ndarray):
            piece = array[done : done + count]
            piece = np.pad(piece, [(0, calls - count)] + [(0, 0)] * (piece.ndim - 1))
            if strategy.num_replicas_in_sync == 1:
                return tf.constant(piece)
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(piece[:, context.replica_id_in_sync_group * share :][:, :share])
            )

        numbers, weights, draws = (placed(array) for array in epoch_arrays(epoch))
        return Part(numbers, weights, draws, tf.constant(count))

    return part


def batch(rows: Rows, config: Config, spec: ModelSpec) -> Callable:
    """A function (numbers [share], draws [share, draws]) -> (inputs, target), gathered and augmented inside a graph."""

    def gathered(numbers, draws):
        inputs = _gather(rows.inputs, numbers)
        if spec.augment is not None:
            inputs = spec.augment(inputs, draws, config.model)
        return inputs, tf.gather(rows.target, numbers)

    return gathered
