"""Sophia: momentum divided by an estimate of the Hessian's diagonal, and clipped; and two ways to estimate it."""

import keras
from keras import ops, saving

from custom_optimizers import ranges, replicas, sparse
from custom_optimizers.moments import moved
from custom_optimizers.optimizer import Optimizer, Slot


@saving.register_keras_serializable("minibatch")
class Sophia(Optimizer):
    """w -= rate * (clip(m / max(rho * h, epsilon), -1, 1) + weight_decay * w), m the average of g, h that of estimates.

    Liu et al., Sophia (2305.14342), algorithm 3; rho is its gamma, under the name that the authors' code has for it.
    There is no bias correction, as in the paper. h moves in `estimate` alone, which the training loop calls every ten
    updates or so, before `apply`:

        if step % 10 == 0:
            optimizer.estimate(gauss_newton_bartlett(lambda: model(x, training=True), weights), weights)
        optimizer.apply(gradients, weights)

    Until it is called, and wherever h is not above 0, a step is one of momentum's sign. Keras' fit never calls it.

    Args: learning_rate; beta_1, beta_2 in [0, 1), decay rates of m and h; rho above 0, such that 10% to 50% of the
    elements are not clipped (0.04 for Gauss-Newton-Bartlett, 0.01 for Hutchinson); weight_decay; epsilon above 0.
    """

    needs_estimates = outermost = True

    def __init__(
        self, learning_rate=1e-4, beta_1=0.965, beta_2=0.99, rho=0.04, weight_decay=0.1, epsilon=1e-12, **options
    ):
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.rho = ranges.positive("rho", rho)
        self.epsilon = ranges.positive("epsilon", epsilon)

    def slots(self, variable):
        return {"m": Slot(), "h": Slot()}

    def update(self, gradient, weight, slots, step):
        m = moved(slots["m"], gradient, self.beta_1)
        ratio = m / ops.maximum(self.rho * slots["h"], self.epsilon)
        return -step.rate * ops.clip(ratio, -1.0, 1.0), {"m": m, "h": slots["h"]}

    def estimate(self, diagonals, variables) -> None:
        """h = beta_2 * h + (1 - beta_2) * diagonal, with the mean of the diagonals over replicas.

        Args: diagonals, one tensor of the variable's shape for each variable, None to leave h as it is; variables, as
        given to apply. Runs where apply runs: in a replica, under a strategy. Raises ValueError for another shape.
        """
        diagonals, variables = list(diagonals), self._known(list(diagonals), variables)
        pairs = [(d, v) for d, v in zip(diagonals, variables, strict=True) if d is not None]
        for diagonal, variable in pairs:
            if tuple(diagonal.shape) != tuple(variable.shape):
                raise ValueError(
                    f"the diagonal of {variable.path} must have its shape {tuple(variable.shape)}, "
                    f"got {tuple(diagonal.shape)}."
                )
        if not pairs:
            return
        variables = [variable for _, variable in pairs]
        count = self._distribution_strategy.num_replicas_in_sync if replicas.on_tensorflow() else 1
        totals = replicas.sum_over_replicas([ops.convert_to_tensor(diagonal) for diagonal, _ in pairs])

        def move(totals):
            for variable, total in zip(variables, totals, strict=True):
                h = self._state.slots[self._get_variable_index(variable)].get("h")
                if h is not None:
                    h.assign(moved(ops.convert_to_tensor(h), ops.cast(total, h.dtype) / count, self.beta_2))

        replicas.everywhere(move, variables, totals)


def gauss_newton_bartlett(logits, variables, seed=None) -> list:
    """n * g^2 for each variable, g the gradient of the mean cross-entropy of labels drawn from the model itself.

    Sophia's algorithm 2: an unbiased estimate of the diagonal of the Gauss-Newton matrix, never below 0. TensorFlow
    backend.

    Args: logits, a function without arguments that runs the model on this replica's part of a batch and returns logits
    [..., classes], n rows of them; variables; seed, an int or keras.random.SeedGenerator.
    """
    tf = _tensorflow("gauss_newton_bartlett")
    with tf.GradientTape() as tape:
        rows = logits()
        rows = tf.reshape(rows, [-1, rows.shape[-1]])  # [n, classes]
        rows = tf.cast(rows, tf.float32) if rows.dtype in (tf.float16, tf.bfloat16) else rows
        drawn = keras.random.categorical(tf.stop_gradient(rows), 1, dtype="int32", seed=seed)[:, 0]  # [n]
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(drawn, rows))
    gradients = _dense(tape.gradient(loss, _native(variables)), variables)
    count = tf.shape(rows)[0]
    return [None if g is None else tf.cast(count, g.dtype) * tf.square(g) for g in gradients]


def hutchinson(loss, variables, seed=None) -> list:
    """u * (H u) for each variable, H the Hessian of the loss and the elements of u drawn from -1 and 1.

    Sophia's algorithm 1: an unbiased estimate of the Hessian's diagonal. Signs in place of the paper's normal numbers
    have the same mean and less variance: none at all where H is diagonal. TensorFlow backend.

    Args: loss, a function without arguments that runs the model on this replica's part of a batch and returns the mean
    loss of that part, a scalar; variables; seed, an int or keras.random.SeedGenerator.
    """
    tf = _tensorflow("hutchinson")
    seed = keras.random.SeedGenerator(seed) if isinstance(seed, int) else seed  # another u for each variable
    native = _native(variables)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            value = loss()
        gradients = _dense(inner.gradient(value, native), variables)
        signs = [
            None if g is None else 2 * tf.cast(keras.random.randint(g.shape, 0, 2, seed=seed), g.dtype) - 1
            for g in gradients
        ]
        along = tf.add_n([tf.reduce_sum(g * u) for g, u in zip(gradients, signs, strict=True) if g is not None])
    products = _dense(outer.gradient(along, native), variables)  # None where the gradient does not depend on anything
    return [
        None if u is None else u * (tf.zeros_like(u) if product is None else product)
        for u, product in zip(signs, products, strict=True)
    ]


def _tensorflow(name: str):
    if not replicas.on_tensorflow():
        raise RuntimeError(f"{name} needs the TensorFlow backend; give Sophia.estimate diagonals of your own.")
    import tensorflow as tf

    return tf


def _native(variables) -> list:
    return [sparse.native(variable) for variable in variables]


def _dense(gradients: list, variables) -> list:
    return [
        None if g is None else sparse.summed(g, False, tuple(variable.shape))[1]
        for g, variable in zip(gradients, variables, strict=True)
    ]
