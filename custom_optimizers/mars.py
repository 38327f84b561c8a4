"""MARS: AdamW on gradients whose variance is reduced by the gradient before."""

from keras import ops, saving

from custom_optimizers import clipping, ranges
from custom_optimizers.adam import adam
from custom_optimizers.optimizer import Optimizer, Slot


def corrected(g, previous, t, beta_1: float, gamma: float):
    """c / max(|c|, 1), of the shape of g: c = g + gamma * beta_1 / (1 - beta_1) * (g - previous); g if t is 1."""
    difference = g - ops.where(t > 1, previous, g)
    return clipping.by_norm(g + gamma * beta_1 / (1 - beta_1) * difference, 1.0)


@saving.register_keras_serializable("minibatch")
class MARS(Optimizer):
    """AdamW of c in the place of g: c = g + gamma * beta_1 / (1 - beta_1) * (g - g_previous), cut to a norm of 1.

    Yuan et al., MARS: Unleashing the Power of Variance Reduction for Training Large Models (2411.10438), MARS-AdamW in
    its approximate form: g_previous is the gradient of the last update, on the mini-batch of then; there is none at the
    first one, where c = g (the authors' code takes zero). The norm is that of one variable. All variables are treated
    alike (the authors' code gives vectors to AdamW).

    Args: learning_rate; beta_1, beta_2 in [0, 1), decay rates of m and v; gamma of 0 or above, the strength of the
    correction; epsilon above 0; weight_decay.
    """

    def __init__(
        self, learning_rate=0.003, beta_1=0.95, beta_2=0.99, gamma=0.025, epsilon=1e-8, weight_decay=0.01, **options
    ):
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.gamma = ranges.not_negative("gamma", gamma)
        self.epsilon = ranges.positive("epsilon", epsilon)

    def slots(self, variable):
        return {"m": Slot(), "v": Slot(), "previous": Slot()}

    def update(self, gradient, weight, slots, step):
        c = corrected(gradient, slots["previous"], step.t, self.beta_1, self.gamma)
        direction, m, v = adam(c, slots["m"], slots["v"], step.t, self.beta_1, self.beta_2, self.epsilon)
        return -step.rate * direction, {"m": m, "v": v, "previous": gradient}
