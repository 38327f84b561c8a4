"""Random numbers that are a pure function of where they are used: no state to save, the same on any number of replicas.

Augmentation draws with `rows`, by the number of the example; dropout draws inside `drawn`, by the number of the update
and the place of the example in the global batch. Both give the same numbers in a plain graph and under XLA.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import keras
import tensorflow as tf

PHILOX = 1  # its number among tf.random.Algorithm
BLOCK = 4  # numbers of 32 bits that Philox makes from one value of its counter


def rows(seed: int, epoch: tf.Tensor, examples: tf.Tensor, draws: int) -> tf.Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24: float32 [share, draws], in row i those of the example
    `examples[i]`.

    `epoch` [] and `examples` [share] are integers below 2^32. In one epoch no two examples have the same 32 bits in a
    column: for a fixed epoch and column both rounds are bijections of the example's number.
    """
    epoch, examples = tf.cast(epoch, tf.uint32), tf.cast(examples, tf.uint32)
    first, second = (_mix(epoch ^ _key(seed, purpose) % 2**32) for purpose in ("first", "second"))  # []
    columns = tf.constant([_key(seed, column) % 2**32 for column in range(draws)], tf.uint32)  # [draws]
    bits = _mix(_mix(examples ^ first)[:, None] ^ columns ^ second)  # [share, draws] uint32
    return tf.cast(tf.bitwise.right_shift(bits, 8), tf.float32) * 2.0**-24


def _mix(bits: tf.Tensor) -> tf.Tensor:
    """uint32 -> uint32, one to one, every bit of the result depending on every bit given: MurmurHash3's finalizer."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ tf.bitwise.right_shift(bits, shift)) * tf.constant(factor, tf.uint32)
    return bits ^ tf.bitwise.right_shift(bits, 16)


def _key(*parts: int | str) -> int:
    """64 bits of a hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


@dataclass
class Source:
    """What the masks of one forward pass depend on. `place` counts them: layers are told apart by the order of their
    calls, not by name, since Keras numbers names on through the life of a process."""

    seed: int
    step: tf.Tensor
    first: tf.Tensor
    place: int = 0

    def bits(self, shape: list, shared: bool) -> tf.Tensor:
        """uint32 [examples, ...], all values equally likely; where `shared`, the same on all replicas.

        Bits and not floats: TensorFlow makes these of the lower bits, XLA of the upper ones.
        """
        each = tf.reduce_prod(tf.cast(shape[1:], tf.int64))  # numbers an example
        blocks = (each + BLOCK - 1) // BLOCK
        start = blocks * tf.cast(0 if shared else self.first, tf.int64)
        numbers = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=tf.stack([tf.cast(shape[0], tf.int64), blocks * BLOCK]),
            key=tf.constant([_key(self.seed, self.place)], tf.uint64),
            counter=tf.cast(tf.stack([start, tf.cast(self.step, tf.int64)]), tf.uint64),  # low word, high word
            alg=PHILOX,
            dtype=tf.uint32,
        )
        self.place += 1
        return tf.reshape(numbers[:, :each], shape)


_here = threading.local()  # MirroredStrategy traces each replica in a thread of its own


@contextmanager
def drawn(seed: int, step: tf.Tensor, first: tf.Tensor) -> Iterator[None]:
    """Inside, for one forward pass, `Dropout` layers draw by (seed, layer's place in the order of calls, step, place of
    the example in the global batch).

    `step` [] is the number of the update, `first` [] the place of this replica's first example in the global batch. All
    replicas must hold examples of the same shape: texts are padded to the longest of the global batch, not of a share.
    """
    outer = getattr(_here, "source", None)
    _here.source = Source(seed, step, first)
    try:
        yield
    finally:
        _here.source = outer


@keras.saving.register_keras_serializable("minibatch")
class Dropout(keras.layers.Dropout):
    """keras.layers.Dropout; inside `drawn` its mask needs no state and does not depend on the number of replicas."""

    def call(self, inputs, training=False):
        source = getattr(_here, "source", None)
        if source is None or not training or not 0 < self.rate < 1:
            return super().call(inputs, training=training)
        known, fixed = tf.shape(inputs), self.noise_shape or (None,) * len(inputs.shape)
        shape = [size or inputs.shape[axis] or known[axis] for axis, size in enumerate(fixed)]
        kept = source.bits(shape, shared=fixed[0] == 1) >= tf.constant(int(self.rate * 2**32), tf.uint32)
        return tf.where(kept, inputs * (1 / (1 - self.rate)), tf.zeros([], inputs.dtype))
