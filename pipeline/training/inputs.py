"""Mini-batches: which rows make up an update is a pure function of (seed, epoch); resuming is starting further on.

A call of many updates takes one Part. It holds all rows, which lie on the device, and the numbers of those to gather
("memory"), or just the rows that the call needs, which were gathered on the host while the call before was computed
("streamed"). Both give the same batches.
"""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from models import noise
from models.spec import ModelSpec
from pipeline.config import Config
from pipeline.training.rows import Rows

WINDOW = 64  # batches among which texts are sorted by length, so that a batch holds texts of similar length
SHUFFLED, BLOCK = 2**20, 2**12  # rows that are shuffled at once, and neighbours that stay together until then
AHEAD = 3  # calls whose rows are made while one is computed: short ones are too short for that
WIDTHS = 32  # how many widths texts are padded to where shapes must be static


def order(seed: int, epoch: int, rows: int, batch: int, lengths: np.ndarray | None = None) -> np.ndarray:
    """Row numbers of an epoch, [rows]: a permutation. With lengths, windows of it are sorted by length and the batches
    shuffled, so that padding is small and the order still differs in each epoch. The short batch, which stays last, is
    cut out of the last window at random: else it would be the longest texts each time."""
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    permutation = _shuffled(random, rows)
    if lengths is None:
        return permutation
    window = batch * WINDOW
    parts = [permutation[i : i + window] for i in range(0, rows, window)]
    *parts, last = (part[np.argsort(lengths[part], kind="stable")] for part in parts)
    cut = random.integers(len(last) // batch + 1) * batch
    short = last[cut : cut + rows % batch]
    batches = np.concatenate([*parts, last[:cut], last[cut + len(short) :]]).reshape(-1, batch)
    return np.concatenate([batches[random.permutation(len(batches))].ravel(), short])


def _shuffled(random: np.random.Generator, rows: int) -> np.ndarray:
    """A permutation of the row numbers: any one of up to SHUFFLED rows. Of more, blocks of neighbours are brought into
    any order, and then as many rows shuffled at a time: one by one, rows would come from all over memory or disk, and
    each would cost more the more there are. Beam has shuffled the neighbours already."""
    kind = np.int32 if rows < 2**31 else np.int64
    numbers: np.ndarray = np.arange(rows, dtype=kind)
    if rows > SHUFFLED:
        blocks = random.permutation(-(-rows // BLOCK))
        numbers = np.add.outer(blocks * BLOCK, np.arange(BLOCK)).ravel().astype(kind)
        numbers = numbers[np.less(numbers, rows)]
    for start in range(0, rows, SHUFFLED):
        random.shuffle(numbers[start : start + SHUFFLED])
    return numbers


def widths(lengths: np.ndarray) -> np.ndarray:
    """Up to WIDTHS widths, rising to the longest row, between which the square root of the density of the lengths has
    equal shares: of all choices that adds the least when each length is rounded up to the next width."""
    shares = np.cumsum(np.sqrt(np.bincount(lengths)))
    ends = shares[-1] * np.arange(1, WIDTHS) / WIDTHS
    return np.unique([*np.searchsorted(shares, ends), lengths.max()])


class Ragged(NamedTuple):
    """Rows of different lengths on the device: all values one after another, and where each row begins and ends."""

    values: Any  # [sum of lengths]
    splits: Any  # [rows + 1]


class Gathered(NamedTuple):
    """The rows of one call, batch by batch."""

    values: Any  # [calls, share, ...]


class Part(NamedTuple):
    """The updates of one call, padded to the same number in every call so that a compiled call has one shape. Per
    replica: each has an equal, contiguous share of every batch."""

    inputs: dict[str, Any]  # tensors [rows, ...] or Ragged of all rows, or Gathered
    target: Any  # [rows], or Gathered
    examples: Any  # [calls, share]: the numbers of each batch's rows among all training rows
    weights: Any  # [calls, share] float32: sum to 1 over all replicas
    widths: dict[str, Any]  # [calls]: the longest row of each whole batch, where rows differ in length
    first: Any  # where this replica's share begins in the batch
    epoch: Any
    step: Any  # updates before this call
    count: Any  # how many of `calls` are updates


class Batches:
    """The parts of a run, one after another; the next ones are made while the current one is computed."""

    def __init__(self, rows: Rows, config: Config, strategy: tf.distribute.Strategy):
        self.rows, self.strategy, self.train = rows, strategy, config.train
        self.per_epoch = -(-len(rows) // self.train.batch_size)
        self.share = self.train.batch_size // strategy.num_replicas_in_sync
        self._distinct = config.task == "image"  # see `examples`
        self.static = self.train.jit or self.train.strategy == "tpu"
        # The rows of a call have one width: of several batches, all would be padded to the longest of all.
        self.widths = widths(rows.lengths) if self.static and rows.lengths is not None else None
        self.calls = min(self.train.steps_per_call, self.per_epoch) if self.widths is None else 1
        self._ahead = ThreadPoolExecutor(2, "input")
        self._next: dict[tuple[int, int], Future] = {}
        # On the device a row's width is only known when its batch is: not static.
        resident = self.train.inputs == "memory" and not rows.on_disk and not (self.static and rows.lengths is not None)
        self._resident = self._spread(lambda _: _whole(rows)) if resident else {}
        # This epoch's order and the next one's: the latter is made ahead, too.
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: order(self.train.seed, epoch, len(rows), self.train.batch_size, rows.lengths)
        )

    def counts(self, step: int) -> list[int]:
        """How many updates the next calls make, up to where the log gets a line: at every multiple of `calls` and at an
        epoch's end. The last update of an epoch is made alone, so that the weights before and after it can be compared,
        and under XLA that of each line: a program without the norm of a gradient is a tenth faster."""
        done = step % self.per_epoch
        end = min(done - done % self.calls + self.calls, self.per_epoch)
        left, alone = end - done, self.train.jit or end == self.per_epoch
        return [left - 1, 1] if alone and left > 1 else [left]

    def part(self, step: int, count: int) -> Part:
        """The `count` updates after the first `step` ones, all of one epoch."""
        made = self._next.pop((step, count), None)
        part = made.result() if made else self._make(step, count)
        long, follows = count > 1, []
        for _ in range(AHEAD):
            step, count = step + count, self.counts(step + count)[0]
            follows.append((step, count))
        if long or follows[0] not in self._next:  # else the interpreter is left to who makes this call
            self._next = {f: self._next.get(f) or self._ahead.submit(self._make, *f) for f in follows}
        return part

    def close(self) -> None:
        self._ahead.shutdown(cancel_futures=True)
        self._resident, self._next = {}, {}  # not only when the collector finds the cycle through `_order`

    def examples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(row numbers [batch], weights [batch]) of the update after `step` ones. The last batch of an epoch is filled
        up with rows of weight 0: shapes are static, and every row counts once an epoch. Images are filled up with the
        epoch's first ones: batch normalisation sees a whole batch of different rows. Ratings and texts, whose rows read
        tables, with the batch's own: a rule that updates the rows that were read would move those of others."""
        numbers, weights = self._batches(step, 1)
        return numbers[0], weights[0]

    def _batches(self, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, done = divmod(step, self.per_epoch)
        size, every = self.train.batch_size, self._order(epoch)
        if done == 0:
            self._ahead.submit(self._order, epoch + 1)
        numbers = every[done * size : (done + count) * size]
        there = np.arange(count * size) < len(numbers)
        filling = every if self._distinct else numbers[(count - 1) * size :]
        numbers = np.concatenate([numbers, np.resize(filling, count * size - len(numbers))])
        weights = there.reshape(count, size).astype(np.float32)
        return numbers.reshape(count, size), weights / weights.sum(axis=1, keepdims=True)

    def _make(self, step: int, count: int) -> Part:
        numbers, weights = (_padded(array, self.calls) for array in self._batches(step, count))
        widths = {
            name: column.lengths(numbers.ravel()).reshape(numbers.shape).max(axis=1).astype(np.int32)  # [calls]
            for name, column in self.rows.inputs.items()
            if column.starts is not None
        }

        def share(replica: int) -> dict[str, Any]:
            mine = slice(replica * self.share, (replica + 1) * self.share)
            examples = np.ascontiguousarray(numbers[:, mine])
            held = {} if self._resident else self._window(examples, widths)
            part = {"examples": examples, "weights": weights[:, mine], "first": np.int64(mine.start)}
            return {**held, **part, "widths": {} if self.static else widths}

        numbers_of_call = {"epoch": step // self.per_epoch, "step": step, "count": count}
        scalars = {name: tf.constant(value, tf.int64) for name, value in numbers_of_call.items()}
        return Part(**self._resident, **self._spread(share), **scalars)

    def _window(self, numbers: np.ndarray, widths: dict[str, np.ndarray]) -> dict[str, Any]:
        """Those rows themselves [calls, share, ...]; of different lengths, padded to the longest of the call."""

        def gathered(values: np.ndarray) -> Gathered:
            return Gathered(values.reshape(*numbers.shape, *values.shape[1:]))

        inputs = {}
        for name, column in self.rows.inputs.items():
            width = int(widths[name].max()) if name in widths else None
            if width and self.widths is not None:
                width = int(self.widths[np.searchsorted(self.widths, width)])
            inputs[name] = gathered(column.take(numbers.ravel(), width))
        return {"inputs": inputs, "target": Gathered(self.rows.target[numbers])}

    def _spread(self, make: Callable[[int], dict]) -> dict:
        """The arrays of make(replica) as tensors on each replica's device."""
        strategy, tpu = self.strategy, self.train.strategy == "tpu"
        devices = [None] if tpu else strategy.extended.worker_devices

        @functools.cache
        def placed(replica: int) -> dict:
            with tf.device(devices[replica % len(devices)]):
                return tf.nest.map_structure(tf.constant, make(replica))

        if strategy.num_replicas_in_sync == 1:
            return placed(0)

        def leaf(place: int):
            return lambda context: tf.nest.flatten(placed(context.replica_id_in_sync_group))[place]

        mine = placed(_first_replica(strategy))
        leaves = range(len(tf.nest.flatten(mine)))
        values = [strategy.experimental_distribute_values_from_function(leaf(place)) for place in leaves]
        return tf.nest.pack_sequence_as(mine, values)


def _first_replica(strategy: tf.distribute.Strategy) -> int:
    """The number, among all, of this process's first replica."""
    found: list[int] = []
    strategy.experimental_distribute_values_from_function(
        lambda context: found.append(context.replica_id_in_sync_group) or tf.constant(0)  # type: ignore[func-returns-value]
    )
    return found[0]


def _whole(rows: Rows) -> dict[str, Any]:
    inputs = {n: c.values if c.starts is None else Ragged(c.values, c.starts) for n, c in rows.inputs.items()}
    return {"inputs": inputs, "target": rows.target}


def _padded(array: np.ndarray, calls: int) -> np.ndarray:
    return np.pad(array, [(0, calls - len(array)), (0, 0)])


def gathered(part: Part) -> Part:
    """The part with the rows of all its updates gathered at once. XLA should: inside the loop of the updates it hands
    each small gather out of many rows to a thread, which costs more than the gather."""

    def gather(column):
        return column if isinstance(column, Gathered) else Gathered(tf.gather(column, part.examples))

    inputs = {name: gather(column) for name, column in part.inputs.items()}
    return part._replace(inputs=inputs, target=gather(part.target))


def batch(part: Part, i, spec: ModelSpec, config: Config) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """(inputs, target) of the i-th update of a part, gathered and augmented; in a replica, inside a graph."""

    def taken(column, width=None) -> tf.Tensor:
        if isinstance(column, Gathered):
            rows = column.values[i]
            return rows if width is None else rows[:, :width]
        if isinstance(column, Ragged):
            return _filled(column, part.examples[i], width)
        return tf.gather(column, part.examples[i])

    widths = {name: each[i] for name, each in part.widths.items()}
    inputs = {name: taken(column, widths.get(name)) for name, column in part.inputs.items()}
    if spec.augment is not None:
        draws = noise.rows(config.train.seed, part.epoch, part.examples[i], spec.draws)  # [share, draws]
        inputs = spec.augment(inputs, draws, config.model)
    return inputs, taken(part.target)


def _filled(column: Ragged, at, width) -> tf.Tensor:
    """Rows [share, width] with zeros behind their values."""
    starts, ends = tf.gather(column.splits, at), tf.gather(column.splits, at + 1)  # [share]
    places = starts[:, None] + tf.range(width, dtype=starts.dtype)  # [share, width]
    there = places < ends[:, None]
    return tf.where(there, tf.gather(column.values, tf.where(there, places, 0)), 0)


def samples(rows: Rows, config: Config, count: int = 32) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """`count` batches (inputs, target) as they are, without augmentation, for statistics over the training rows."""
    size = config.train.batch_size
    numbers = order(config.train.seed, 0, len(rows), size, rows.lengths)[: count * size]
    chunks = [numbers[i : i + size] for i in range(0, len(numbers), size)]
    return [({n: column.take(chunk) for n, column in rows.inputs.items()}, rows.target[chunk]) for chunk in chunks]
