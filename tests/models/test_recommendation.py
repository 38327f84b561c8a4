"""Claims about the recommendation task."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers
from models import recommendation
from models.analysis import RatingsAnalysis
from models.options import Recommendation
from models.recommendation import Factorisation

OPTIONS = Recommendation(factors=3, members=2, l2=0.1, k=2)
ANALYSIS = RatingsAnalysis(
    users=("ann", "bob"),
    items=("a", "b", "c"),
    user_counts=(2, 1),
    seen=(("a", "c"), ("b",)),
    global_mean=3.0,
    lowest=1.0,
    highest=5.0,
)


@pytest.fixture
def model() -> keras.Model:
    model = recommendation.build(OPTIONS, ANALYSIS)
    table = factorisation(model).table
    values = np.random.default_rng(0).normal(0, 0.5, table.shape)
    values[[0, 3]] = 0  # the unknown user, the unknown item
    table.assign(values)
    return model


@pytest.fixture
def serving(model) -> recommendation.Serving:
    return recommendation.Serving(model, OPTIONS, ANALYSIS)


def factorisation(model) -> Factorisation:
    return next(layer for layer in model.layers if isinstance(layer, Factorisation))


def parts(model) -> dict[str, np.ndarray]:
    """user_bias and item_bias [rows, members], user and item [rows, members, factors]."""
    layer, found = factorisation(model), {}
    for name, rows in zip(("user", "item"), np.split(layer.table.numpy(), [layer.rows[0]]), strict=True):
        vectors, biases = layer.split(rows)
        found |= {name: vectors.reshape(-1, OPTIONS.members, OPTIONS.factors), f"{name}_bias": biases}
    return found


def of_members(p: dict[str, np.ndarray], user: int, item: int) -> np.ndarray:
    """What each member says, before any clipping, [members]."""
    return 3 + p["user_bias"][user] + p["item_bias"][item] + np.sum(p["user"][user] * p["item"][item], axis=1)


def rate(serving, user: str, item: str) -> float:
    answer = serving.functions["serving_default"](user_id=tf.constant([user]), item_id=tf.constant([item]))
    return float(answer["rating"][0])


def test_vectors_start_small_and_different_biases_and_the_row_of_the_unknown_at_zero():
    p = parts(recommendation.build(OPTIONS, ANALYSIS))
    for name in ("user", "item"):
        assert not p[name][0].any()
        assert not p[f"{name}_bias"].any()
        assert 0.02 < p[name][1:].std() < 0.3
    assert len(np.unique(np.concatenate([p["user"][1:].ravel(), p["item"][1:].ravel()]))) == 5 * p["user"][0].size


def test_a_rating_is_the_members_mean_of_global_mean_plus_biases_plus_the_product_of_the_vectors(model, serving):
    expected = of_members(parts(model), 2, 1)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(rate(serving, "bob", "a"), np.clip(expected.mean(), 1, 5), rtol=1e-5)


def test_an_unknown_user_gets_the_items_average_an_unknown_item_the_users_both_the_global_mean(model, serving):
    p = parts(model)
    np.testing.assert_allclose(rate(serving, "nobody", "b"), np.clip(3 + p["item_bias"][2].mean(), 1, 5), rtol=1e-5)
    np.testing.assert_allclose(rate(serving, "ann", "nothing"), np.clip(3 + p["user_bias"][1].mean(), 1, 5), rtol=1e-5)
    assert rate(serving, "nobody", "nothing") == 3.0


def test_ratings_stay_in_the_range_of_the_training_ratings(model, serving):
    layer = factorisation(model)
    table = layer.table.numpy()
    table[3:, -OPTIONS.members :] = [[0.0], [100.0], [-100.0], [0.0]]
    layer.table.assign(table)
    assert rate(serving, "ann", "a") == 5.0
    assert rate(serving, "ann", "b") == 1.0


def test_recommend_ranks_by_rating_and_leaves_out_what_the_user_rated_in_training(model, serving):
    answer = serving.functions["recommend"](user_id=tf.constant(["bob", "ann", "nobody"]))
    ids = [[i.decode() for i in row] for row in answer["item_ids"].numpy()]
    p = parts(model)
    scores = [of_members(p, 2, item).mean() for item in (1, 2, 3)]
    assert ids[0] == sorted(["a", "c"], key=lambda i: -scores[ANALYSIS.items.index(i)])
    assert ids[1] == ["b", ""]  # nothing else is left for ann
    popular = np.argsort(-p["item_bias"][1:].mean(axis=1))[:2]
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
    rows = (p["user"][1], p["item"][2], p["user_bias"][1], p["item_bias"][2])
    expected = sum(np.sum(row**2) for row in rows)
    np.testing.assert_allclose(outputs["penalty"], [expected, 0.0], rtol=1e-5)
    losses = recommendation.loss(tf.constant([4.0, 4.0]), outputs, OPTIONS)
    errors = np.sum((of_members(p, 1, 2) - 4.0) ** 2)
    np.testing.assert_allclose(losses, [errors + 0.1 * expected, OPTIONS.members * 1.0], rtol=1e-5)


def test_a_member_gets_the_gradient_that_it_would_get_alone(model, serving):
    target, ids = tf.constant([1.0, 5.0]), {"user": tf.constant([1, 2]), "item": tf.constant([3, 1])}
    alone = Recommendation(factors=OPTIONS.factors, members=1, l2=OPTIONS.l2)
    single = recommendation.build(alone, ANALYSIS)
    layer = factorisation(model)

    def of_second(table: np.ndarray) -> np.ndarray:
        vectors, biases = layer.split(table)
        return np.concatenate([vectors[:, OPTIONS.factors :], biases[:, 1:]], axis=1)

    for variable, table in zip(single.trainable_variables, model.trainable_variables, strict=True):
        variable.assign(of_second(table.numpy()))

    def gradients(model, options):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(recommendation.loss(target, model(ids), options))
        found = tape.gradient(value, [v.value for v in model.trainable_variables])
        return [tf.convert_to_tensor(g).numpy() for g in found]

    for one, every in zip(gradients(single, alone), gradients(model, OPTIONS), strict=True):
        np.testing.assert_allclose(one, of_second(every), rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_what_members_say_and_of_the_penalty(model):
    layer = factorisation(model)
    pairs = tf.gather(layer.table.value, [[1, 2], [4, 6]])  # [2, batch, width]
    by_rating, by_penalty = tf.constant([[1.0, -2.0], [0.5, 3.0]]), tf.constant([0.7, -0.3])

    def total(ratings, penalty):
        return tf.reduce_sum(by_rating * ratings) + tf.reduce_sum(by_penalty * penalty)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(pairs)
        (p, b), (q, c) = layer.split(pairs[0]), layer.split(pairs[1])
        products = tf.reduce_sum(tf.reshape(p * q, [2, OPTIONS.members, OPTIONS.factors]), axis=2)
        plain = total(3 + b + c + products, tf.reduce_sum(pairs * pairs, axis=[0, 2]))
        ours = total(*layer.compare(pairs))
    np.testing.assert_allclose(ours, plain, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(ours, pairs), tape.gradient(plain, pairs), rtol=1e-6)


@pytest.mark.parametrize("rule", [custom_optimizers.LazyAdam, custom_optimizers.Adam, custom_optimizers.Muon])
def test_the_row_of_the_unknown_stays_zero_while_the_others_move(rule):
    model = recommendation.build(OPTIONS, ANALYSIS)
    weights, optimizer = model.trainable_variables, rule(0.1)
    before = [weight.numpy() for weight in weights]
    for _ in range(3):
        with tf.GradientTape() as tape:
            outputs = model({"user": tf.constant([1, 2, 2]), "item": tf.constant([3, 1, 2])})
            value = tf.reduce_sum(recommendation.loss(tf.constant([1.0, 5.0, 2.0]), outputs, OPTIONS))
        optimizer.apply(tape.gradient(value, weights), weights)
    unknown = [0, factorisation(model).rows[0]]
    for old, weight in zip(before, weights, strict=True):
        assert not weight.numpy()[unknown].any()
        assert np.delete(old != weight.numpy(), unknown, axis=0).all()


def test_users_and_items_do_not_start_with_the_same_vectors():
    p = parts(recommendation.build(OPTIONS, ANALYSIS))
    assert (p["user"][1:3] != p["item"][1:3]).any(axis=2).all()


def test_members_do_not_start_with_the_same_vectors():
    for vectors in ("user", "item"):
        first, second = np.moveaxis(parts(recommendation.build(OPTIONS, ANALYSIS))[vectors], 1, 0)
        assert (first[1:] != second[1:]).all()
