"""ADOPT: Adam that converges whatever beta_2."""

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.moments import moved
from custom_optimizers.optimizer import Optimizer, Slot


def adopt(g, m, v, t, beta_1: float, beta_2: float, epsilon: float, clipping: bool):
    """(m, v) of one update, of the shape of g. t counts from 1, which only takes v; the paper counts from 0."""
    scaled = g / ops.maximum(ops.sqrt(v), epsilon)
    if clipping:
        limit = (t - 1) ** 0.25
        scaled = ops.maximum(ops.minimum(scaled, limit), -limit)
    first = ops.equal(t, 1)
    square = ops.square(g)
    return ops.where(first, m, moved(m, scaled, beta_1)), ops.where(first, square, moved(v, square, beta_2))


@saving.register_keras_serializable("minibatch")
class ADOPT(Optimizer):
    """m = beta_1 * m + (1 - beta_1) * clip(g / max(sqrt(v), epsilon), t^(1/4)); w -= rate * m; then v of g^2.

    v is the average of the squares of EARLIER gradients, from the first on, so the first update only takes v: weights
    do not move by it (but weight decay acts). Taniguchi et al., ADOPT: Modified Adam Can Converge with Any beta_2 with
    the Optimal Rate (2411.02853), algorithm 2; clipping=False is algorithm 1.

    Args: learning_rate; beta_1, beta_2 in [0, 1); epsilon above 0, the least divisor; clipping, whether elements are
    kept within the fourth root of the number of earlier updates.
    """

    def __init__(self, learning_rate=0.001, beta_1=0.9, beta_2=0.9999, epsilon=1e-6, clipping=True, **options):
        super().__init__(learning_rate, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.epsilon = ranges.positive("epsilon", epsilon)
        self.clipping = bool(clipping)

    def slots(self, variable):
        return {"m": Slot(), "v": Slot()}

    def update(self, gradient, weight, slots, step):
        numbers = self.beta_1, self.beta_2, self.epsilon, self.clipping
        m, v = adopt(gradient, slots["m"], slots["v"], step.t, *numbers)
        return -step.rate * m, {"m": m, "v": v}
