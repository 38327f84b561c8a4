"""The numbers learned from the training rows, against numpy and by hand, and as models.analysis reads them."""

import json
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from models import analysis, options, sentiment
from models.image import Inputs
from pipeline.preprocess.image import Image, Pixels
from pipeline.preprocess.recommendation import Recommendation
from pipeline.preprocess.sentiment import Sentiment


def pixels_as_the_model_sees_them(records, settings):
    images = tf.constant([row["image_bytes"] for row in records.rows("train")])
    return Inputs(settings, None)({"image_bytes": images})["image"].numpy() / 255


def test_image_mean_and_variance_are_those_of_the_training_pixels_only(plain, config):
    records = plain("image")
    pixels = pixels_as_the_model_sees_them(records, config("image").model)
    learned = analysis.load(records.path, "image")
    np.testing.assert_allclose(learned.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(learned.variance, pixels.var((0, 1, 2)), rtol=1e-12)
    assert learned.classes == ("cat", "dog")
    counts = Counter(row["label"].decode() for row in records.rows("train"))
    assert json.loads((records.path / "analysis.json").read_text())["class_counts"] == counts


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_another_size_count_as_the_model_resizes_them(channels, literal, made):
    settings = options.Image(height=4, width=5, channels=channels)
    records = made(literal("image"), model=settings)
    pixels = pixels_as_the_model_sees_them(records, settings)
    learned = analysis.load(records.path, "image")
    np.testing.assert_allclose(learned.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(learned.variance, pixels.var((0, 1, 2)), rtol=1e-12)


def test_image_sums_are_exact_where_floats_would_round():
    task, part = Image((), 1, 1, 1), Pixels(0, [0], [0])
    task.add(part, Pixels(2**60 + 1, [255 * 2**60], [255**2 * 2**60]))
    assert (part.count, part.total) == (2**60 + 1, [255 * 2**60])


def test_declared_classes_keep_their_order(literal, made):
    assert analysis.load(made(literal("image"), classes=("dog", "cat")).path, "image").classes == ("dog", "cat")


def test_vocabulary_is_the_most_frequent_training_tokens_with_ties_in_byte_order(plain):
    records = plain("sentiment")
    texts = [row["text"] for row in records.rows("train")]
    counts = Counter(token for text in texts for token in text.split())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
    lines = (records.path / "vocabulary.tsv").read_bytes()
    assert lines == b"".join(b"%s\t%d\n" % item for item in ranked)
    assert ranked[0][0] == b"and"
    assert len({count for _, count in ranked}) < 5, "the rows must hold a tie"


def test_ties_are_cut_and_ordered_by_bytes(tmp_path):
    task = Sentiment((), vocabulary_size=3)
    part = task.part([{"text": "é z a b"}, {"text": "b Z"}])
    task.write(part, {"neg": 1, "pos": 1}, tmp_path)
    assert (tmp_path / "vocabulary.tsv").read_text() == "b\t2\nz\t2\na\t1\n"


def test_counts_are_those_of_the_models_own_tokeniser_on_hard_texts(tmp_path):
    """Accents, both forms of é, a dotted capital I, a no-break space, emoji, markup and apostrophes."""
    texts = ["Café CAFE\u0301 İstanbul", "no\u00a0break", "great\U0001f600\U0001f600!", "it's<br />fine -- ÉTÉ", "..."]
    part = Sentiment((), 100).part([{"text": text} for text in texts])
    rows = sentiment.tokenise(tf.constant(texts)).to_list()
    assert part == Counter(token for row in rows for token in row)
    Sentiment((), 100).write(part, {"neg": 3, "pos": 2}, tmp_path)
    model = sentiment.Inputs(options.Sentiment(vocabulary_size=100), analysis.load(tmp_path, "sentiment"))
    ids = model({"text": tf.constant(texts[:4])})["tokens"].flat_values.numpy()
    assert min(ids) >= sentiment.FIRST, "every token that was counted is found by the model"


def test_parts_of_texts_add_up_in_any_batches(monkeypatch):
    texts = [{"text": f"w{n % 3} x"} for n in range(10)]
    whole = Sentiment((), 9).part(texts)
    monkeypatch.setattr("pipeline.preprocess.sentiment.BATCH", 3)
    task = Sentiment((), 9)
    part = task.part(texts[:4])
    task.add(part, task.part(texts[4:]))
    assert part == whole


def test_rating_tables_hold_the_users_and_items_of_training(literal, made):
    records = made(literal("recommendation"), split_by="time")
    learned = analysis.load(records.path, "recommendation")
    rows = records.rows("train")
    pairs = [(row["user_id"].decode(), row["item_id"].decode()) for row in rows]
    assert learned.users == ("u0", "u1", "u2", "u3", "u4")
    assert learned.items == tuple(sorted({item for _, item in pairs}))
    assert learned.user_counts == tuple(sum(u == user for u, _ in pairs) for user in learned.users)
    assert learned.seen == tuple(tuple(sorted(i for u, i in pairs if u == user)) for user in learned.users)
    ratings = [row["rating"] for row in rows]
    assert learned.global_mean == pytest.approx(np.mean(ratings), rel=1e-12)
    assert (learned.lowest, learned.highest) == (min(ratings), max(ratings))


def test_an_item_rated_twice_counts_twice_and_is_seen_once(tmp_path):
    task = Recommendation(needs_time=False)
    rows = [{"user_id": "ü", "item_id": "i", "rating": 1.0}, {"user_id": "ü", "item_id": "i", "rating": 2.0}]
    task.write(task.part(rows), {}, tmp_path)
    assert (tmp_path / "users.jsonl").read_text() == '{"id": "\\u00fc", "count": 2, "items": ["i"]}\n'
    assert (tmp_path / "items.jsonl").read_text() == '{"id": "i", "count": 2}\n'


def test_the_global_mean_is_the_same_in_any_order_of_the_parts(tmp_path):
    task = Recommendation(needs_time=False)
    parts = [task.part([{"user_id": "u", "item_id": "i", "rating": value}]) for value in (0.1, 1e16, -1e16, 0.2)]
    texts = []
    for order in (parts, parts[::-1], [parts[1], *parts[2:], parts[0]]):
        total = task.part([])
        for part in order:
            task.add(total, part)
        task.write(total, {}, tmp_path)
        texts.append((tmp_path / "analysis.json").read_text())
    assert len(set(texts)) == 1
    assert '"global_mean": 0.075' in texts[0]
