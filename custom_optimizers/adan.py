"""Adan: Nesterov momentum from the differences of successive gradients."""

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.moments import debias, moved
from custom_optimizers.optimizer import Optimizer, Slot


def adan(g, m, d, n, previous, t, beta_1: float, beta_2: float, beta_3: float, epsilon: float):
    """(direction, m, d, n) of one update, all of the shape of g. t counts from 1."""
    difference = g - ops.where(t > 1, previous, g)
    m = moved(m, g, beta_1)
    d = moved(d, difference, beta_2)
    n = moved(n, ops.square(g + beta_2 * difference), beta_3)
    ahead = m / debias(beta_1, t) + beta_2 * d / debias(beta_2, t)
    return ahead / (ops.sqrt(n / debias(beta_3, t)) + epsilon), m, d, n


@saving.register_keras_serializable("minibatch")
class Adan(Optimizer):
    """w = (w - rate * (m^ + beta_2 * d^) / (sqrt(n^) + epsilon)) / (1 + rate * weight_decay)

    with m^, d^ and n^ the unbiased averages of g, of the difference g - g_previous (zero at the first update) and of
    (g + beta_2 * difference)^2. Xie et al., Adan: Adaptive Nesterov Momentum Algorithm (2208.06677), algorithm 1. The
    paper writes beta for what is 1 - beta here and in its authors' code; optax multiplies the difference by 1 - beta_2.
    Weight decay is the paper's proximal one, the division.

    Args: learning_rate; beta_1, beta_2, beta_3 in [0, 1), decay rates of m, d and n; epsilon above 0; weight_decay.
    """

    decays = False

    def __init__(self, learning_rate=0.001, beta_1=0.98, beta_2=0.92, beta_3=0.99, epsilon=1e-8, **options):
        super().__init__(learning_rate, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.beta_3 = ranges.fraction("beta_3", beta_3)
        self.epsilon = ranges.positive("epsilon", epsilon)

    def slots(self, variable):
        return {"m": Slot(), "d": Slot(), "n": Slot(), "previous": Slot()}

    def update(self, gradient, weight, slots, step):
        averages = slots["m"], slots["d"], slots["n"], slots["previous"]
        betas = self.beta_1, self.beta_2, self.beta_3
        direction, m, d, n = adan(gradient, *averages, step.t, *betas, self.epsilon)
        delta = -step.rate * direction
        if self.weight_decay and self._use_weight_decay(step.variable):
            decay = step.rate * self.weight_decay
            delta = (delta - decay * weight) / (1 + decay)
        return delta, {"m": m, "d": d, "n": n, "previous": gradient}
