"""Recommendation by matrix factorisation: user and item ids -> rating, and the best unseen items of a user.

    rating(u, i) = global mean + mean over the members m of (b_um + b_im + <p_um, q_im>)

clipped to the range of the training ratings. The members are factorisations of their own that start from different
vectors: each errs in its own way, so their mean errs less.

A user or an item that training never saw contributes nothing: its bias and its vector count as zero. So an unknown user
is answered with the items' averages, an unknown item with the user's average, both unknown with the global mean.
"""

import keras
import numpy as np
import tensorflow as tf

from models.analysis import RatingsAnalysis
from models.options import Recommendation
from models.spec import Features, ModelSpec, Tensors, full_precision, lookup_table, saved_variables


class Inputs(tf.Module):
    """user_id, item_id [batch] -> {"user": int32 [batch], "item": int32 [batch]}; 0 = never seen in training."""

    def __init__(self, options: Recommendation, analysis: RatingsAnalysis):
        super().__init__()
        self.users, self.items = lookup_table(analysis.users, -1), lookup_table(analysis.items, -1)

    def __call__(self, features: Features) -> Tensors:
        return {"user": self.users.lookup(features["user_id"]) + 1, "item": self.items.lookup(features["item_id"]) + 1}


def target(features: Features, analysis: RatingsAnalysis) -> tf.Tensor:
    return features["rating"]


class Factorisation(keras.layers.Layer):
    """{"user", "item"} [batch] -> {"rating": [batch], "ratings": [batch, members], "penalty": [batch]}: the mean, what
    each member says, and the squared norm of the rows looked up.

    A row of a table holds the vectors of all members and then their biases: one lookup finds, and one update writes,
    all that is known of a user. Row 0 is zero, and stays so, since training never looks it up.
    """

    def __init__(self, users: int, items: int, factors: int, members: int, mean: float):
        super().__init__(dtype=full_precision())
        self.rows, self.factors, self.members, self.mean = {"user": users, "item": items}, factors, members, mean

    def build(self, _):
        def first(shape, dtype):
            known, width = shape[0] - 1, self.members * self.factors
            vectors = keras.random.normal((known, width), stddev=0.1, dtype=dtype)
            return tf.pad(vectors, [[1, 0], [0, self.members]])  # biases start at zero

        width = self.members * (self.factors + 1)
        self.users, self.items = (
            self.add_weight(shape=(count + 1, width), initializer=first, name=name) for name, count in self.rows.items()
        )

    def split(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Vectors [rows, members * factors] and biases [rows, members]."""
        return rows[:, : self.members * self.factors], rows[:, self.members * self.factors :]

    def call(self, inputs):
        # Gathered from the variables themselves: from the Keras ones it would be from a copy of the table.
        users, items = tf.gather(self.users.value, inputs["user"]), tf.gather(self.items.value, inputs["item"])
        (p, b), (q, c) = self.split(users), self.split(items)
        products = tf.reduce_sum(tf.reshape(p * q, [-1, self.members, self.factors]), axis=2)  # [batch, members]
        ratings = self.mean + b + c + products  # [batch, members]
        # A sum as a product with ones: XLA adds up the rows of a matrix one number at a time.
        penalty = tf.linalg.matvec(users * users + items * items, tf.ones([users.shape[1]], users.dtype))  # [batch]
        return {"rating": tf.reduce_mean(ratings, axis=1), "ratings": ratings, "penalty": penalty}


def build(options: Recommendation, analysis: RatingsAnalysis) -> keras.Model:
    ids = {name: keras.Input([], dtype="int32", name=name) for name in ("user", "item")}
    users, items = len(analysis.users), len(analysis.items)
    layer = Factorisation(users, items, options.factors, options.members, analysis.global_mean)
    return keras.Model(ids, layer(ids), name="recommendation")


def loss(target: tf.Tensor, outputs: dict[str, tf.Tensor], options: Recommendation) -> tf.Tensor:
    """(rating - target)^2 + l2 * (|p_u|^2 + |q_i|^2 + b_u^2 + b_i^2) on the rows looked up only, summed over the
    members: each gets the gradient that it would get alone."""
    ratings, penalty = outputs["ratings"], outputs["penalty"]  # [batch, members], [batch]
    errors = tf.reduce_sum(tf.square(ratings - tf.cast(target, ratings.dtype)[:, None]), axis=1)  # [batch]
    return errors + options.l2 * penalty


class Serving(tf.Module):
    """The signatures `serving_default` (user_id, item_id), `recommend` (user_id) and `regress` (tf.Example)."""

    def __init__(self, model: keras.Model, options: Recommendation, analysis: RatingsAnalysis):
        super().__init__()
        self.inputs, self.item_ids = Inputs(options, analysis), tf.constant(analysis.items)
        self.weights = saved_variables(model)
        factors = next(layer for layer in model.layers if isinstance(layer, Factorisation))
        seen = tf.ragged.constant(self._seen(analysis), tf.int32, ragged_rank=1)  # row 0: the unknown user
        k = min(options.k, len(analysis.items))

        def clip(ratings: tf.Tensor) -> tf.Tensor:
            return tf.clip_by_value(tf.cast(ratings, tf.float32), analysis.lowest, analysis.highest)

        def rate(user_id: tf.Tensor, item_id: tf.Tensor) -> tf.Tensor:
            rating = model(self.inputs({"user_id": user_id, "item_id": item_id}), training=False)["rating"]  # [batch]
            return clip(rating)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, n) for n in ("user_id", "item_id")])
        def serving_default(user_id, item_id):
            return {"rating": rate(user_id, item_id)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "user_id")])
        def recommend(user_id):
            user = self.inputs.users.lookup(user_id) + 1  # [batch]
            p, b = factors.split(tf.gather(factors.users, user))  # [batch, members * factors], [batch, members]
            q, c = factors.split(factors.items[1:])  # [items, members * factors], [items, members]
            products = tf.matmul(p, q, transpose_b=True) / factors.members  # [batch, items]
            biases = tf.reduce_mean(b, axis=1)[:, None] + tf.reduce_mean(c, axis=1)  # [batch, items]
            scores = factors.mean + biases + products  # [batch, items]
            rows = tf.gather(seen, user)  # ragged [batch, None]
            places = tf.stack([tf.cast(rows.value_rowids(), tf.int32), rows.flat_values], axis=1)  # [n, 2]
            hidden = tf.fill([tf.shape(places)[0]], scores.dtype.min)
            top = tf.math.top_k(tf.tensor_scatter_nd_update(scores, places, hidden), k)
            ratings = clip(top.values)
            ids = tf.where(top.values > scores.dtype.min, tf.gather(self.item_ids, top.indices), "")  # "": none is left
            return {"item_ids": ids, "scores": ratings}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def regress(inputs):
            specs = {name: tf.io.FixedLenFeature([], tf.string) for name in ("user_id", "item_id")}
            features = tf.io.parse_example(inputs, specs)
            return {"outputs": rate(features["user_id"], features["item_id"])}

        self.functions = {"serving_default": serving_default, "recommend": recommend, "regress": regress}

    @staticmethod
    def _seen(analysis: RatingsAnalysis) -> list[np.ndarray]:
        place = {item: index for index, item in enumerate(analysis.items)}
        rows = [np.array([place[i] for i in items], np.int32) for items in analysis.seen]
        return [np.array([], np.int32), *rows]


SPEC: ModelSpec[Recommendation, RatingsAnalysis] = ModelSpec(
    inputs=Inputs, target=target, build=build, loss=loss, serve=Serving, monitor="rmse", lower_is_better=True
)
