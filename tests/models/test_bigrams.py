"""Claims about the linear model of words and pairs of words."""

import numpy as np
import pytest
import tensorflow as tf

from models.bigrams import SCALE, SPREAD, Bigrams

WORDS, BUCKETS = 7, 11
TOKENS = np.array([[2, 3, 5, 3], [6, 4, 0, 0], [1, 0, 0, 0]], np.int32)


def layer(dropout: float = 0.0) -> Bigrams:
    layer, random = Bigrams(WORDS, BUCKETS, dropout), np.random.default_rng(0)
    layer.build(None)
    for variable in (layer.bias, layer.word, layer.pair):
        variable.assign(random.normal(size=variable.shape))
    return layer


def test_a_logit_is_the_scaled_sum_of_the_weights_of_words_and_pairs():
    bigrams = layer()
    bias, word, pair = (v.numpy() for v in (bigrams.bias, bigrams.word, bigrams.pair))
    expected = []
    for row in TOKENS:
        text = [int(token) for token in row if token]
        places = [(before * SPREAD + token) % BUCKETS for before, token in zip([0, *text], text, strict=False)]
        expected.append(bias + SCALE / np.sqrt(len(text)) * (word[text].sum() + pair[places].sum()))
    np.testing.assert_allclose(bigrams(tf.constant(TOKENS)), expected, rtol=1e-5)


def test_padding_does_not_change_a_logit_and_a_text_without_tokens_gets_the_bias():
    bigrams, padded = layer(), np.pad(TOKENS, [[0, 1], [0, 6]])
    np.testing.assert_allclose(bigrams(tf.constant(padded))[:3], bigrams(tf.constant(TOKENS)), rtol=1e-6)
    np.testing.assert_array_equal(bigrams(tf.constant(padded))[3], bigrams.bias)


def test_the_order_of_the_words_counts():
    bigrams = layer()
    assert bigrams(tf.constant([[2, 3]])) != bigrams(tf.constant([[3, 2]]))


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "XLA"])
def test_gradients_are_of_the_rows_read_and_padding_gets_none(jit):
    bigrams = layer()

    def gradients():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(bigrams(tf.constant(TOKENS)))
        slices = tape.gradient(total, [bigrams.word.value, bigrams.pair.value])
        assert all(isinstance(gradient, tf.IndexedSlices) for gradient in slices)
        return [
            tf.math.unsorted_segment_sum(g.values, g.indices, n) for g, n in zip(slices, (WORDS, BUCKETS), strict=True)
        ]

    word, pair = tf.function(gradients, jit_compile=jit)()
    np.testing.assert_allclose(word[3], 2 * SCALE / 2, rtol=1e-6)  # twice in a text of four
    assert word[0] == 0
    np.testing.assert_allclose(tf.reduce_sum(pair), tf.reduce_sum(word), rtol=1e-6)


def test_dropout_leaves_out_places_of_a_text_in_training_only():
    bigrams, tokens = layer(dropout=0.5), tf.constant(np.full([64, 1], 2, np.int32))
    whole = bigrams(tokens) - bigrams.bias
    trained = np.unique(bigrams(tokens, training=True) - bigrams.bias)
    np.testing.assert_allclose(trained, sorted([0.0, 2.0 * float(whole[0, 0])]), rtol=1e-4, atol=1e-6)
