"""Claims about the sentiment task."""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import sentiment
from models.analysis import TextAnalysis
from models.options import Sentiment
from models.sentiment import FIRST, UNKNOWN, tokenise

OPTIONS = Sentiment(vocabulary_size=4, max_tokens=5, embedding=8, units=4, dropout=0.3)


@pytest.fixture
def analysis(tmp_path: Path) -> TextAnalysis:
    (tmp_path / "vocabulary.tsv").write_text("film\t9\ngood\t5\nbad\t4\ncafé\t2\nrare\t1\n", encoding="utf-8")
    return TextAnalysis(("neg", "pos"), tmp_path / "vocabulary.tsv")


def tokens(text: str | bytes) -> list[str]:
    return [token.decode() for token in tokenise(tf.constant([text])).to_list()[0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A GOOD film, really!", ["a", "good", "film", "really"]),
        ("Don't", ["don't"]),
        ("line<br />break<br>two", ["line", "break", "two"]),
        ("CAFÉ naïve ÜBER", ["café", "naïve", "über"]),
        ("no\u00a0break\u2003space\tand\nline", ["no", "break", "space", "and", "line"]),
        ("great😀😀film", ["great", "😀", "😀", "film"]),
        ("映画 7½ 10/10", ["映画", "7½", "10", "10"]),
        ("", []),
        (" \u00a0!?", []),
    ],
)
def test_a_text_becomes_these_tokens(text, expected):
    assert tokens(text) == expected


def test_a_dotted_i_is_one_token_whatever_lower_makes_of_it():
    (token,) = tokens("İstanbul")
    assert token.endswith("stanbul")
    assert token == token.lower()


def test_bytes_that_are_no_utf8_are_tokens_too_and_no_error():
    assert tokens(b"good \xff\xfe film") == ["good", "\ufffd", "\ufffd", "film"]


def test_ids_follow_the_vocabulary_up_to_its_size_and_the_rest_is_unknown(analysis):
    ids = sentiment.Inputs(OPTIONS, analysis)({"text": tf.constant(["Film bad rare never CAFÉ"])})["tokens"]
    assert ids.to_list() == [[FIRST, FIRST + 2, UNKNOWN, UNKNOWN, FIRST + 3]]


def test_texts_are_cut_at_max_tokens_and_an_empty_one_is_one_unknown_token(analysis):
    ids = sentiment.Inputs(OPTIONS, analysis)({"text": tf.constant(["film " * 9, "", "good"])})["tokens"]
    assert [len(row) for row in ids.to_list()] == [5, 1, 1]
    assert ids.to_list()[1:] == [[UNKNOWN], [FIRST + 1]]


@pytest.mark.parametrize(
    "changes",
    [{}, {"cell": "gru"}, {"bigrams": 50}, {"max_pooling": True}, {"cell": "gru", "max_pooling": True}],
    ids=str,
)
def test_padding_does_not_change_an_answer(analysis, changes):
    options = dataclasses.replace(OPTIONS, **changes)
    serving = sentiment.Serving(sentiment.build(options, analysis), options, analysis)
    ask = serving.functions["serving_default"]
    texts = ["good film", "bad", "", "film good bad film good"]
    together = ask(tf.constant(texts))["score"].numpy()
    alone = [ask(tf.constant([text]))["score"].numpy()[0] for text in texts]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert len(set(np.round(together, 6))) == 4  # the model does tell the texts apart


def test_the_label_is_the_side_of_the_score_and_classify_gives_both_sides(analysis):
    serving = sentiment.Serving(sentiment.build(OPTIONS, analysis), OPTIONS, analysis)
    example = tf.train.Example()
    example.features.feature["text"].bytes_list.value.append(b"good film")
    answer = serving.functions["serving_default"](tf.constant(["good film"]))
    both = serving.functions["classify"](tf.constant([example.SerializeToString()]))
    score = float(answer["score"][0])
    assert answer["label"][0] == (b"pos" if score > 0.5 else b"neg")
    np.testing.assert_allclose(both["scores"][0], [1 - score, score], rtol=1e-5)
    assert both["classes"].numpy().tolist() == [[b"neg", b"pos"]]


def test_the_loss_is_the_binary_cross_entropy_with_smoothed_targets():
    logits, target = tf.constant([[2.0], [2.0]]), tf.constant([1, 0])
    np.testing.assert_allclose(
        sentiment.loss(target, logits, OPTIONS), [np.log1p(np.exp(-2)), np.log1p(np.exp(2))], rtol=1e-5
    )
    smooth = sentiment.loss(target, logits, dataclasses.replace(OPTIONS, label_smoothing=0.2))
    np.testing.assert_allclose(smooth, [np.log1p(np.exp(-2)) + 0.2, np.log1p(np.exp(2)) - 0.2], rtol=1e-5)


def test_with_bigrams_the_answer_is_the_mean_of_two_logits_that_each_have_a_loss_of_their_own(analysis):
    options = dataclasses.replace(OPTIONS, bigrams=50)
    model = sentiment.build(options, analysis)
    next(layer for layer in model.layers if isinstance(layer, sentiment.Bigrams)).bias.assign([3.0])
    serving = sentiment.Serving(model, options, analysis)
    logits = model({"tokens": tf.constant([[FIRST, FIRST + 1]])})
    assert logits[0, 1] == 3.0
    answer = serving.functions["serving_default"](tf.constant(["film good"]))
    np.testing.assert_allclose(answer["score"], tf.sigmoid(tf.reduce_mean(logits, axis=1)), rtol=1e-5)
    losses = sentiment.loss(tf.constant([1]), logits, options)
    np.testing.assert_allclose(losses, [np.sum(np.log1p(np.exp(-logits.numpy())))], rtol=1e-5)


def test_max_pooling_takes_the_largest_state_among_the_words_that_are_there():
    states = np.random.default_rng(0).uniform(-1, 0, [2, 4, 3]).astype("float32")
    states[1, 2:] = 0.9  # beyond the end of the text
    mask = tf.constant([[True] * 4, [True, True, False, False]])
    pooled = sentiment.MaxPooling()(tf.constant(states), mask=mask)
    np.testing.assert_array_equal(pooled, [states[0].max(axis=0), states[1, :2].max(axis=0)])


def test_the_classifier_sees_mean_and_maximum(analysis):
    model = sentiment.build(dataclasses.replace(OPTIONS, max_pooling=True), analysis)
    pooled = {type(layer) for layer in model.layers} & {sentiment.MaxPooling, keras.layers.GlobalAveragePooling1D}
    assert len(pooled) == 2
    assert model.layers[-1].kernel.shape == (4 * OPTIONS.units, 1)


def test_word_dropout_hides_whole_words_and_scales_up_the_others(analysis):
    model = sentiment.build(dataclasses.replace(OPTIONS, word_dropout=0.5, dropout=0.0), analysis)
    words = next(layer for layer in model.layers if isinstance(layer, sentiment.Dropout))
    x = tf.ones([20, 5, 8])
    kept = words(x, training=True).numpy()
    assert set(np.unique(kept)) == {0.0, 2.0}
    assert (kept == kept[:, :, :1]).all()
    assert len(np.unique(kept[:, :, 0], axis=0)) > 1
