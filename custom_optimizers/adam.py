"""Adam and its lazy forms for embedding tables."""

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.moments import debias, moved
from custom_optimizers.optimizer import Optimizer, Slot


def adam(g, m, v, t, beta_1: float, beta_2: float, epsilon: float):
    """(direction, m, v) of one update: m^ / (sqrt(v^) + epsilon), all of the shape of g. t counts from 1."""
    m = moved(m, g, beta_1)
    v = moved(v, ops.square(g), beta_2)
    return m / debias(beta_1, t) / (ops.sqrt(v / debias(beta_2, t)) + epsilon), m, v


@saving.register_keras_serializable("minibatch")
class Adam(Optimizer):
    """w -= rate * m^ / (sqrt(v^) + epsilon), m^ and v^ the unbiased averages of g and g^2.

    Kingma and Ba, Adam (1412.6980), algorithm 1: epsilon is added to the root of the unbiased v, as in optax and torch
    (Keras adds it to the root of the biased one). A sparse gradient moves every row, as a dense one would; LazyAdam
    moves its own rows only.

    Args: learning_rate; beta_1, beta_2 in [0, 1), decay rates of m and v; epsilon above 0.
    """

    def __init__(self, learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-7, **options):
        super().__init__(learning_rate, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.epsilon = ranges.positive("epsilon", epsilon)

    def slots(self, variable):
        return {"m": Slot(), "v": Slot()}

    def update(self, gradient, weight, slots, step):
        direction, m, v = adam(gradient, slots["m"], slots["v"], step.t, self.beta_1, self.beta_2, self.epsilon)
        return -step.rate * direction, {"m": m, "v": v}

    def fused(self, variable, gradient, slots, step):
        """TensorFlow's kernel reads and writes each array once; it adds epsilon to the biased root, so scale that."""
        import tensorflow as tf

        if self.weight_decay and self._use_weight_decay(step.variable):
            variable.assign_sub(step.rate * self.weight_decay * variable)
        power_1, power_2 = 1 - debias(self.beta_1, step.t), 1 - debias(self.beta_2, step.t)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=slots["m"].handle,
            v=slots["v"].handle,
            beta1_power=power_1,
            beta2_power=power_2,
            lr=step.rate,
            beta1=tf.constant(self.beta_1, gradient.dtype),
            beta2=tf.constant(self.beta_2, gradient.dtype),
            epsilon=self.epsilon * tf.sqrt(debias(self.beta_2, step.t)),
            grad=gradient,
        )
        return True


@saving.register_keras_serializable("minibatch")
class AdamW(Adam):
    """Adam with decoupled weight decay: w -= rate * (m^ / (sqrt(v^) + epsilon) + weight_decay * w).

    Loshchilov and Hutter, Decoupled Weight Decay Regularization (1711.05101), algorithm 2.
    """

    def __init__(self, learning_rate=0.001, weight_decay=0.004, beta_1=0.9, beta_2=0.999, epsilon=1e-7, **options):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, weight_decay=weight_decay, **options)


@saving.register_keras_serializable("minibatch")
class LazyAdam(Adam):
    """Adam that updates only the rows of a table that a sparse gradient names; m, v and w of others stay as they are.

    Not the same trajectory as Adam, on purpose: a row's moments do not decay while it is absent. The bias correction
    counts all updates (as TensorFlow Addons' LazyAdam and torch's SparseAdam do). Cost: the rows of the batch, however
    large the table. For dense gradients it is Adam.
    """

    lazy = True


@saving.register_keras_serializable("minibatch")
class LazyAdamW(AdamW):
    """LazyAdam with decoupled weight decay of the rows that are touched, when they are touched."""

    lazy = True
