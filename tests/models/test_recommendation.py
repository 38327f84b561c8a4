"""Claims about the recommendation task."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import recommendation
from models.analysis import RatingsAnalysis
from models.options import Recommendation
from models.recommendation import Factorisation

OPTIONS = Recommendation(factors=3, l2=0.1, k=2)
ANALYSIS = RatingsAnalysis(
    users=("ann", "bob"),
    items=("a", "b", "c"),
    user_counts=(2, 1),
    item_counts=(1, 1, 1),
    seen=(("a", "c"), ("b",)),
    global_mean=3.0,
    lowest=1.0,
    highest=5.0,
)


@pytest.fixture
def model() -> keras.Model:
    model = recommendation.build(OPTIONS, ANALYSIS)
    layer = next(layer for layer in model.layers if isinstance(layer, Factorisation))
    random = np.random.default_rng(0)
    for variable in layer.weights:  # the row of the unknown is filled too: it must not matter
        variable.assign(random.normal(0, 0.5, variable.shape))
    return model


@pytest.fixture
def serving(model) -> recommendation.Serving:
    return recommendation.Serving(model, OPTIONS, ANALYSIS)


def factorisation(model) -> Factorisation:
    return next(layer for layer in model.layers if isinstance(layer, Factorisation))


def parts(model) -> dict[str, np.ndarray]:
    layer = factorisation(model)
    names = ("user_bias", "item_bias", "user_vectors", "item_vectors")
    return {name: getattr(layer, name).numpy() for name in names}


def rate(serving, user: str, item: str) -> float:
    answer = serving.functions["serving_default"](user_id=tf.constant([user]), item_id=tf.constant([item]))
    return float(answer["rating"][0])


def test_a_rating_is_mean_plus_biases_plus_the_product_of_the_vectors(model, serving):
    p = parts(model)
    expected = 3 + p["user_bias"][2] + p["item_bias"][1] + p["user_vectors"][2] @ p["item_vectors"][1]
    np.testing.assert_allclose(rate(serving, "bob", "a"), np.clip(expected, 1, 5), rtol=1e-5)


def test_an_unknown_user_gets_the_items_average_an_unknown_item_the_users_both_the_global_mean(model, serving):
    p = parts(model)
    np.testing.assert_allclose(rate(serving, "nobody", "b"), np.clip(3 + p["item_bias"][2], 1, 5), rtol=1e-5)
    np.testing.assert_allclose(rate(serving, "ann", "nothing"), np.clip(3 + p["user_bias"][1], 1, 5), rtol=1e-5)
    assert rate(serving, "nobody", "nothing") == 3.0


def test_ratings_stay_in_the_range_of_the_training_ratings(model, serving):
    layer = factorisation(model)
    layer.item_bias.assign([0.0, 100.0, -100.0, 0.0])
    assert rate(serving, "ann", "a") == 5.0
    assert rate(serving, "ann", "b") == 1.0


def test_recommend_ranks_by_rating_and_leaves_out_what_the_user_rated_in_training(model, serving):
    answer = serving.functions["recommend"](user_id=tf.constant(["bob", "ann", "nobody"]))
    ids = [[i.decode() for i in row] for row in answer["item_ids"].numpy()]
    p = parts(model)
    scores = p["item_bias"][1:] + p["item_vectors"][1:] @ p["user_vectors"][2]
    assert ids[0] == sorted(["a", "c"], key=lambda i: -scores[ANALYSIS.items.index(i)])
    assert ids[1] == ["b", ""]  # nothing else is left for ann
    popular = np.argsort(-p["item_bias"][1:])[:2]
    assert ids[2] == [ANALYSIS.items[i] for i in popular]
    np.testing.assert_allclose(answer["scores"][0][0], rate(serving, "bob", ids[0][0]), rtol=1e-5)


def test_regress_reads_the_ids_out_of_an_example(model, serving):
    example = tf.train.Example()
    example.features.feature["user_id"].bytes_list.value.append(b"ann")
    example.features.feature["item_id"].bytes_list.value.append(b"b")
    answer = serving.functions["regress"](tf.constant([example.SerializeToString()]))
    np.testing.assert_allclose(answer["outputs"][0], rate(serving, "ann", "b"), rtol=1e-6)


def test_l2_charges_the_rows_looked_up_and_no_others(model, serving):
    p = parts(model)
    inputs = {"user": tf.constant([1, 0]), "item": tf.constant([2, 0])}
    outputs = model(inputs)
    expected = np.sum(p["user_vectors"][1] ** 2) + np.sum(p["item_vectors"][2] ** 2)
    expected += p["user_bias"][1] ** 2 + p["item_bias"][2] ** 2
    np.testing.assert_allclose(outputs["penalty"], [expected, 0.0], rtol=1e-5)
    losses = recommendation.loss(tf.constant([4.0, 4.0]), outputs, OPTIONS)
    error = outputs["rating"][0] - 4.0
    np.testing.assert_allclose(losses, [error**2 + 0.1 * expected, 1.0], rtol=1e-5)


def test_the_rows_of_the_unknown_get_no_gradient(model, serving):
    layer = factorisation(model)
    with tf.GradientTape() as tape:
        outputs = model({"user": tf.constant([0]), "item": tf.constant([0])})
        value = tf.reduce_sum(outputs["rating"] + outputs["penalty"])
    for gradient in tape.gradient(value, [v.value for v in layer.trainable_variables]):
        np.testing.assert_array_equal(tf.convert_to_tensor(gradient)[0], np.zeros_like(gradient.values[0]))


def test_users_and_items_do_not_start_with_the_same_vectors():
    p = parts(recommendation.build(OPTIONS, ANALYSIS))
    assert (p["user_vectors"][:3] != p["item_vectors"][:3]).any(axis=1).all()
