"""D-Adaptation of Adam: the learning rate from the gradients seen so far."""

import math

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.moments import moved
from custom_optimizers.optimizer import Optimizer, Slot
from custom_optimizers.prodigy import above_one, factor, total


@saving.register_keras_serializable("minibatch")
class DAdaptAdam(Optimizer):
    """w -= m / (sqrt(v) + epsilon), with m and v the averages of rate * d * g and g^2, and b = sqrt(beta_2) in

        r = b * r + (1 - b) * rate * d * <g, s / (sqrt(v) + epsilon)>;  s = b * s + (1 - b) * rate * d * g
        d = max(d, r / ((1 - b) * |s|_1))

    Defazio and Mishchenko, Learning-Rate-Free Learning by D-Adaptation (2301.07733), algorithm 5. The inner product and
    |s|_1 run over ALL variables, so there is one d for the model. As in the authors' code the product takes s and v as
    they were before this update. Prodigy finds the step size in fewer updates.

    Args: learning_rate, a factor of the step size found: 1, or a schedule that falls from 1 to 0; beta_1, beta_2 in
    [0, 1); epsilon above 0; weight_decay, decoupled: w -= rate * d * weight_decay * w; d0 above 0, the first d;
    growth_rate above 1, by how much d may grow in one update (1.02 is a kind of warm-up), None for any;
    use_bias_correction, Adam's.
    """

    decays = False

    def __init__(
        self,
        learning_rate=1.0,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        weight_decay=0.0,
        d0=1e-6,
        growth_rate=None,
        use_bias_correction=False,
        **options,
    ):
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.epsilon = ranges.positive("epsilon", epsilon)
        self.d0 = ranges.positive("d0", d0)
        self.growth_rate = ranges.optional(above_one, "growth_rate", growth_rate)
        self.use_bias_correction = bool(use_bias_correction)

    def slots(self, variable):
        return {"m": Slot(), "v": Slot(), "s": Slot()}

    def shared(self):
        return {"d": self.d0, "r": 0.0}

    def update_all(self, gradients, weights, slots, steps, shared):
        d, kind, b = shared["d"], shared["d"].dtype, math.sqrt(self.beta_2)
        rates = [ops.cast(d, w.dtype) * factor(step, self) for w, step in zip(weights, steps, strict=True)]
        products = [
            total([rate * g * slot["s"] / (ops.sqrt(slot["v"]) + self.epsilon)], kind)
            for rate, g, slot in zip(rates, gradients, slots, strict=True)
        ]
        r = moved(shared["r"], sum(products), b)
        pairs = [self._move(*each, b) for each in zip(gradients, weights, slots, rates, steps, strict=True)]
        deltas, slots = [delta for delta, _ in pairs], [slot for _, slot in pairs]
        length = (1 - b) * total([ops.abs(slot["s"]) for slot in slots], kind)
        # No gradient has been other than 0 yet if the length is 0: d stays.
        estimate = ops.where(length > 0, r / ops.where(length > 0, length, ops.ones_like(length)), 0.0)
        if self.growth_rate is not None:
            estimate = ops.minimum(estimate, d * self.growth_rate)
        return deltas, slots, {"d": ops.maximum(d, estimate), "r": r}

    def _move(self, gradient, weight, slots, rate, step, b):
        m = moved(slots["m"], rate * gradient, self.beta_1)
        v = moved(slots["v"], ops.square(gradient), self.beta_2)
        delta = -m / (ops.sqrt(v) + self.epsilon)
        if self.weight_decay and self._use_weight_decay(step.variable):
            delta = delta - rate * self.weight_decay * weight
        return delta, {"m": m, "v": v, "s": moved(slots["s"], rate * gradient, b)}
