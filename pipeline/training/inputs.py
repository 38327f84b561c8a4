"""Mini-batches: the training rows as tensors in memory, gathered in an order that is a pure function of (seed, epoch).

Decoding, tokenising and table look-ups do not depend on the epoch, so they are done once a run. A batch is then a
list of row numbers; resuming in the middle of an epoch is starting that list further on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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


def batches(rows: Rows, config: Config, spec: ModelSpec, strategy: tf.distribute.Strategy) -> Callable[[int], Iterator]:
    """A function from an update number to an iterator over (inputs, target, weights) for the rest of its epoch.

    Each replica gets an equal, contiguous part of every global batch. No Python runs inside the iterator: one that did
    could wait for the interpreter's lock while the interpreter waits for it to end.
    """
    train, size, replicas = config.train, config.train.batch_size, strategy.num_replicas_in_sync
    per_epoch, share = -(-len(rows) // size), size // replicas
    signature = [
        tf.TensorSpec([share], tf.int64),
        tf.TensorSpec([share], tf.float32),
        tf.TensorSpec([share, spec.draws], tf.float32),
    ]

    @tf.function(input_signature=signature)  # traced once, not once an epoch
    def gather(numbers, weights, draws):
        inputs = {}
        for name, value in rows.inputs.items():
            part = tf.gather(value, numbers)
            inputs[name] = part.to_tensor(0) if isinstance(part, tf.RaggedTensor) else part
        if spec.augment is not None:
            inputs = spec.augment(inputs, draws, config.model)
        return inputs, tf.gather(rows.target, numbers), weights

    def rest_of_epoch(step: int) -> Iterator:
        epoch, done = divmod(step, per_epoch)
        numbers, weights = weighted_batches(order(train.seed, epoch, len(rows), size, rows.lengths), size)
        random = np.random.Generator(np.random.PCG64([train.seed, epoch, 1]))
        draws = random.random((len(rows), spec.draws), np.float32)[numbers]  # a row's, wherever it stands in the order

        def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
            mine = replicas // context.num_input_pipelines  # replicas of this worker
            first = context.input_pipeline_id * mine * share
            parts = tuple(  # [steps * mine, share, ...]: one element for each of this worker's replicas in turn
                a[done:, first : first + mine * share].reshape((per_epoch - done) * mine, share, *a.shape[2:])
                for a in (numbers, weights, draws)
            )
            dataset = tf.data.Dataset.from_tensor_slices(parts)
            return dataset.map(gather, num_parallel_calls=2, deterministic=True).prefetch(4)

        return iter(strategy.distribute_datasets_from_function(pipeline))

    return rest_of_epoch
