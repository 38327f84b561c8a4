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

    One table holds the rows of all users and, behind them, of all items; a row holds the vectors of all members and
    then their biases. So one lookup finds, and one update writes, all that is known of a batch. The first row of users
    and the first of items are zero, and stay so, since training never looks them up.
    """

    def __init__(self, users: int, items: int, factors: int, members: int, mean: float):
        super().__init__(dtype=full_precision())
        self.rows, self.factors, self.members, self.mean = (users + 1, items + 1), factors, members, mean

    def build(self, _):
        def first(shape, dtype):
            def drawn(count: int) -> tf.Tensor:
                vectors = keras.random.normal((count - 1, self.members * self.factors), stddev=0.1, dtype=dtype)
                return tf.pad(vectors, [[1, 0], [0, self.members]])  # biases start at zero

            return tf.concat([drawn(count) for count in self.rows], axis=0)

        shape = (sum(self.rows), self.members * (self.factors + 1))
        self.table = self.add_weight(shape=shape, initializer=first, name="rows")

    def split(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Vectors [rows, members * factors] and biases [rows, members]."""
        return rows[:, : self.members * self.factors], rows[:, self.members * self.factors :]

    def compare(self, pairs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows of users and of items [2, batch, width] -> what each member says [batch, members], and their squared
        norms [batch]."""
        own = np.eye(self.members)
        own = np.concatenate([own.repeat(self.factors, axis=1), own], axis=1)  # 1 in a member's columns
        columns = tf.constant(own, pairs.dtype)  # [members, width]
        is_vector = tf.range(pairs.shape[2]) < self.members * self.factors  # [width]

        def summed(vectors):
            return tf.reduce_sum(tf.reshape(vectors, [-1, self.members, self.factors]), axis=2)  # [batch, members]

        @tf.custom_gradient  # TensorFlow's own, of slices, is a sum of padded tensors: XLA does not vectorise it
        def compared(pairs):
            (p, b), (q, c) = self.split(pairs[0]), self.split(pairs[1])
            ratings = self.mean + b + c + summed(p * q)
            penalty = tf.reduce_sum(b * b + c * c + summed(p * p) + summed(q * q), axis=1)

            def gradient(by_rating, by_penalty):
                others = tf.where(is_vector, tf.reverse(pairs, [0]), tf.ones([], pairs.dtype))
                return 2 * by_penalty[:, None] * pairs + tf.matmul(by_rating, columns) * others

            return (ratings, penalty), gradient

        return compared(pairs)

    def call(self, inputs):
        rows = tf.stack([inputs["user"], inputs["item"] + self.rows[0]])  # [2, batch]
        # Gathered from the variable itself: from the Keras one it would be from a copy of the table.
        ratings, penalty = self.compare(tf.gather(self.table.value, rows))
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
            p, b = factors.split(tf.gather(factors.table, user))  # [batch, members * factors], [batch, members]
            q, c = factors.split(factors.table[factors.rows[0] + 1 :])  # [items, members * factors], [items, members]
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
