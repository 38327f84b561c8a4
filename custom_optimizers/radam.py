"""RAdam: Adam that trusts its second moment only as far as the gradients seen so far allow."""

import math

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.moments import debias, moved
from custom_optimizers.optimizer import Optimizer, Slot


def length(t, beta_2: float):
    """rho_t = rho - 2 * t * beta_2^t / (1 - beta_2^t) with rho = 2 / (1 - beta_2) - 1: the gradients that v averages.

    With x = -log(beta_2) that is rho - 2 / x * y / (e^y - 1), y = x * t: for small y a difference of two numbers in the
    thousands that is about t, in float32 wrong from the third digit. Its series is used there instead.
    """
    x = -math.log(beta_2)
    y = x * t
    series = y / 2 - y**2 / 12 + y**4 / 720 - y**6 / 30240
    return (2 / (1 - beta_2) - 1 - 2 / x) + 2 / x * ops.where(y < 0.1, series, 1 - y / ops.expm1(y))


@saving.register_keras_serializable("minibatch")
class RAdam(Optimizer):
    """w -= rate * r_t * m^ / (sqrt(v^) + epsilon) where rho_t > 4, w -= rate * m^ before that

    with m^ and v^ as in Adam and r_t = sqrt((rho_t - 4) (rho_t - 2) rho / ((rho - 4) (rho - 2) rho_t)). Liu et al., On
    the Variance of the Adaptive Learning Rate and Beyond (1908.03265), algorithm 2. (optax and torch wait for rho_t of
    5 by default.) With beta_2 of 0.6 or below rho_t never reaches 4, and this is momentum.

    Args: learning_rate; beta_1, beta_2 in [0, 1), decay rates of m and v; epsilon above 0.
    """

    def __init__(self, learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-8, **options):
        super().__init__(learning_rate, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.epsilon = ranges.positive("epsilon", epsilon)

    def slots(self, variable):
        return {"m": Slot(), "v": Slot()}

    def update(self, gradient, weight, slots, step):
        t = step.t
        m = moved(slots["m"], gradient, self.beta_1)
        v = moved(slots["v"], ops.square(gradient), self.beta_2)
        direction = m / debias(self.beta_1, t)
        longest = 2 / (1 - self.beta_2) - 1
        if longest > 4:
            rho = length(t, self.beta_2)
            scale = longest / ((longest - 4) * (longest - 2))
            rectified = ops.sqrt(ops.maximum((rho - 4) * (rho - 2), 0.0) * scale / rho)
            adapted = rectified * direction / (ops.sqrt(v / debias(self.beta_2, t)) + self.epsilon)
            direction = ops.where(rho > 4, adapted, direction)
        return -step.rate * direction, {"m": m, "v": v}
