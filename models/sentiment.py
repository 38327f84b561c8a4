"""Sentiment of a text: UTF-8 -> the probability of the positive class, by a recurrent network over tokens."""

import keras
import tensorflow as tf

from models.analysis import TextAnalysis
from models.bigrams import Bigrams
from models.noise import Dropout
from models.options import Sentiment
from models.recurrence import BlockLSTM
from models.spec import Features, ModelSpec, Tensors, class_index, full_precision, saved_variables

PADDING, UNKNOWN, FIRST = 0, 1, 2
"""Token ids: nothing there, not in the vocabulary, the most frequent token of the vocabulary."""


def tokenise(texts: tf.Tensor) -> tf.RaggedTensor:
    """Texts [batch] -> lower-case tokens [batch, None].

    A token is a run of letters, marks, digits and apostrophes, or a single symbol such as an emoji. This is the only
    tokeniser: preprocessing counts with it, training and the exported model look up with it. Bytes that are no UTF-8
    become U+FFFD first, since a client may send anything.
    """
    texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
    texts = tf.strings.regex_replace(texts, r"<br\s*/?>", " ")
    texts = tf.strings.lower(texts, encoding="utf-8")
    texts = tf.strings.regex_replace(texts, r"(\p{So})", r" \1 ")
    texts = tf.strings.regex_replace(texts, r"[^\p{L}\p{M}\p{N}\p{So}']+", " ")
    return tf.strings.split(texts)


class Inputs(tf.Module):
    """text [batch] -> {"tokens": ragged int32 [batch, None]}, at least one token and at most options.max_tokens
    each."""

    def __init__(self, options: Sentiment, analysis: TextAnalysis):
        super().__init__()
        self.max_tokens = options.max_tokens
        with open(analysis.vocabulary, encoding="utf-8", newline="\n") as file:
            tokens = [line.split("\t")[0] for line in file]
        tokens = tokens[: options.vocabulary_size]
        ids = tf.range(FIRST, FIRST + len(tokens), dtype=tf.int32)
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(tf.constant(tokens, tf.string), ids), UNKNOWN
        )

    def __call__(self, features: Features) -> Tensors:
        tokens = tokenise(features["text"])[:, : self.max_tokens]  # [batch, None]
        ids = tf.ragged.map_flat_values(self.table.lookup, tokens)
        nothing = tf.cast(tf.equal(ids.row_lengths(), 0), tf.int64)  # [batch]: 1 where the text has no token
        filler = tf.RaggedTensor.from_row_lengths(tf.fill([tf.reduce_sum(nothing)], UNKNOWN), nothing)
        return {"tokens": tf.concat([ids, filler], axis=1)}


def target(features: Features, analysis: TextAnalysis) -> tf.Tensor:
    return class_index(features["label"], analysis.classes)


class MaxPooling(keras.layers.Layer):
    """States [batch, time, features] -> the largest of each feature over the words that are there [batch, features]."""

    supports_masking = True

    def call(self, states, mask=None):
        lowest = -tf.ones([], states.dtype)  # of an LSTM or GRU: states are in (-1, 1)
        return tf.reduce_max(states if mask is None else tf.where(mask[:, :, None], states, lowest), axis=1)

    def compute_mask(self, states, previous_mask=None):
        return None


def build(options: Sentiment, analysis: TextAnalysis) -> keras.Model:
    layers = keras.layers
    penalty = keras.regularizers.L1L2(options.l1, options.l2) if options.l1 or options.l2 else None
    cell = {"lstm": BlockLSTM, "gru": layers.GRU}[options.cell]
    tokens = keras.Input([None], dtype="int32", name="tokens")
    # The row of PADDING is never read: the mask goes through the recurrence and the mean, so padding changes nothing.
    x = layers.Embedding(FIRST + options.vocabulary_size, options.embedding, mask_zero=True)(tokens)
    x = Dropout(options.word_dropout, noise_shape=(None, None, 1))(x)  # whole words
    x = Dropout(options.dropout)(x)
    recurrence = cell(options.units, return_sequences=True, kernel_regularizer=penalty, recurrent_regularizer=penalty)
    x = (layers.Bidirectional(recurrence) if options.bidirectional else recurrence)(x)  # [batch, time, features]
    mean = layers.GlobalAveragePooling1D()(x)  # [batch, features]
    x = layers.Concatenate()([mean, MaxPooling()(x)]) if options.max_pooling else mean
    x = Dropout(options.dropout)(x)
    logits = layers.Dense(1, kernel_regularizer=penalty, dtype=full_precision())(x)  # [batch, 1]
    if options.bigrams:
        bigrams = Bigrams(FIRST + options.vocabulary_size, options.bigrams, options.word_dropout)(tokens)
        logits = layers.Concatenate(dtype=full_precision())([logits, bigrams])  # [batch, 2]
    return keras.Model({"tokens": tokens}, logits, name="sentiment")


def loss(target: tf.Tensor, logits: tf.Tensor, options: Sentiment) -> tf.Tensor:
    """Binary cross-entropy against target * (1 - s) + s / 2, s the label smoothing; with bigrams the sum of the
    network's and theirs, so that each learns the whole task and neither leans on the other."""
    truth = tf.cast(target, logits.dtype) * (1 - options.label_smoothing) + options.label_smoothing / 2
    each = tf.nn.sigmoid_cross_entropy_with_logits(tf.broadcast_to(truth[:, None], tf.shape(logits)), logits)
    return tf.reduce_sum(each, axis=1)  # [batch]


class Serving(tf.Module):
    """The signatures `serving_default` (text) and `classify` (tf.Example)."""

    def __init__(self, model: keras.Model, options: Sentiment, analysis: TextAnalysis):
        super().__init__()
        self.inputs, self.classes = Inputs(options, analysis), tf.constant(analysis.classes)
        self.weights = saved_variables(model)

        def score(text: tf.Tensor) -> tf.Tensor:
            tokens = self.inputs({"text": text})["tokens"].to_tensor(PADDING)  # [batch, time]
            logits = model({"tokens": tokens}, training=False)  # [batch, 1 or 2]
            return tf.cast(tf.sigmoid(tf.reduce_mean(logits, axis=1)), tf.float32)  # [batch]

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def serving_default(text):
            values = score(text)
            return {"label": tf.gather(self.classes, tf.cast(values > 0.5, tf.int32)), "score": values}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def classify(inputs):
            values = score(tf.io.parse_example(inputs, {"text": tf.io.FixedLenFeature([], tf.string)})["text"])
            classes = tf.repeat(self.classes[None], tf.shape(values)[0], axis=0)  # [batch, 2]
            return {"classes": classes, "scores": tf.stack([1 - values, values], axis=1)}

        self.functions = {"serving_default": serving_default, "classify": classify}


SPEC: ModelSpec[Sentiment, TextAnalysis] = ModelSpec(
    inputs=Inputs, target=target, build=build, loss=loss, serve=Serving, monitor="accuracy"
)
