"""A linear model of the words and the pairs of neighbouring words of a text: quick to learn, and hard to beat where
single phrases decide."""

import keras
import tensorflow as tf

from models.noise import Dropout
from models.spec import full_precision

SCALE = 25.0
"""The rate that suits the weights of a network is too slow for weights that are met a few times an epoch, each in few
texts: they are kept in units of SCALE."""
SPREAD = 1_000_003
"""A prime: how far apart the ids of one word's pairs with consecutive words are put."""


class Bigrams(keras.layers.Layer):
    """tokens [batch, time], 0 where there is none -> logit [batch, 1]

        bias + SCALE / sqrt(tokens of the text) * sum over t of (word[token t] + pair[token t - 1, token t])

    A pair's weight is found by its hash, so that some of them share one of the `buckets`. Training leaves out each
    place t at the rate `dropout`. Gradients of both tables are sparse.
    """

    def __init__(self, words: int, buckets: int, dropout: float):
        super().__init__(dtype=full_precision())
        self.words, self.buckets = words, buckets
        self.dropout = Dropout(dropout, dtype=self.dtype_policy)

    def build(self, _):
        self.bias = self.add_weight(shape=(1,), initializer="zeros", name="bias")
        self.word = self.add_weight(shape=(self.words,), initializer="zeros", name="word")
        self.pair = self.add_weight(shape=(self.buckets,), initializer="zeros", name="pair")

    def call(self, tokens, training=False):
        before = tf.pad(tokens, [[0, 0], [1, 0]])[:, :-1]  # [batch, time]: 0 in front of the first
        pairs = (tf.cast(before, tf.int64) * SPREAD + tf.cast(tokens, tf.int64)) % self.buckets
        votes = tf.gather(self.word.value, tokens) + tf.gather(self.pair.value, pairs)  # [batch, time]
        there = tf.cast(tokens > 0, votes.dtype)
        votes = self.dropout(votes, training=training) * there
        total, count = (tf.reduce_sum(x, axis=1, keepdims=True) for x in (votes, there))  # [batch, 1]
        return self.bias + SCALE * total / tf.sqrt(tf.maximum(count, 1))
