"""AdEMAMix: Adam with a second, much slower average of the gradients."""

import math

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.moments import debias, moved
from custom_optimizers.optimizer import Optimizer, Slot


def raised(t, last: float, warmup: int | None):
    """The mixing weight of update t: last * t / warmup, and `last` from there on."""
    return last if warmup is None else last * ops.minimum(t / warmup, 1.0)


def forgotten(t, first: float, last: float, warmup: int | None):
    """1 - beta of update t, beta rising from `first` to `last` so that its half-life rises linearly.

    The half-life goes as -1 / log(beta). The complement is returned as it keeps its digits where beta is close to 1.
    """
    if warmup is None:
        return 1 - last
    share = ops.minimum(t / warmup, 1.0)
    length = (share - 1) / math.log(first) if first else 0.0  # a beta of zero forgets at once
    return -ops.expm1(-1 / (length - share / math.log(last)))


@saving.register_keras_serializable("minibatch")
class AdEMAMix(Optimizer):
    """w -= rate * ((m1^ + alpha_t * m2) / (sqrt(v^) + epsilon) + weight_decay * w)

    with m1^ and v^ as in Adam and m2 = beta_3 * m2 + (1 - beta_3) * g, which is not corrected for its start at zero.
    Pagliardini, Ablin and Grangier, The AdEMAMix Optimizer: Better, Faster, Older (2409.03137), algorithm 1. Made for
    long runs: m2 remembers some 1 / (1 - beta_3) updates.

    Args: learning_rate; beta_1, beta_2 in [0, 1); beta_3 in (0, 1), decay rate of m2; alpha of 0 or above, its weight;
    epsilon above 0; weight_decay; alpha_warmup, the updates in which alpha rises from 0 to its value; beta_3_warmup,
    those in which beta_3 rises from beta_1, linearly in its half-life (None: constant; the paper: all updates of the
    run, for both).
    """

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        beta_3=0.9999,
        alpha=5.0,
        epsilon=1e-8,
        alpha_warmup=None,
        beta_3_warmup=None,
        **options,
    ):
        super().__init__(learning_rate, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.beta_3 = ranges.positive("beta_3", ranges.fraction("beta_3", beta_3))
        self.alpha = ranges.not_negative("alpha", alpha)
        self.epsilon = ranges.positive("epsilon", epsilon)
        self.alpha_warmup = ranges.optional(ranges.whole, "alpha_warmup", alpha_warmup)
        self.beta_3_warmup = ranges.optional(ranges.whole, "beta_3_warmup", beta_3_warmup)

    def slots(self, variable):
        return {"m1": Slot(), "m2": Slot(), "v": Slot()}

    def update(self, gradient, weight, slots, step):
        t = step.t
        m1 = moved(slots["m1"], gradient, self.beta_1)
        m2 = slots["m2"] + forgotten(t, self.beta_1, self.beta_3, self.beta_3_warmup) * (gradient - slots["m2"])
        v = moved(slots["v"], ops.square(gradient), self.beta_2)
        mixed = m1 / debias(self.beta_1, t) + raised(t, self.alpha, self.alpha_warmup) * m2
        direction = mixed / (ops.sqrt(v / debias(self.beta_2, t)) + self.epsilon)
        return -step.rate * direction, {"m1": m1, "m2": m2, "v": v}
