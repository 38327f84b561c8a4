"""Prodigy: Adam that finds its learning rate from the distance it has gone."""

import math

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.moments import debias, moved
from custom_optimizers.optimizer import Optimizer, Slot


def total(parts: list, kind: str):
    """The sum of all elements of all arrays, a scalar of the given dtype."""
    return sum(ops.cast(ops.sum(part), kind) for part in parts)


@saving.register_keras_serializable("minibatch")
class Prodigy(Optimizer):
    """w -= rate * d * m / (sqrt(v) + d * epsilon), with m and v the averages of d * g and (d * g)^2, and

        r = beta_3 * r + rate * d^2 * <g, w_0 - w>;  s = beta_3 * s + rate * d^2 * g
        d = max(d, d_coef * r / |s|_1)

    Mishchenko and Defazio, Prodigy (2306.06101), algorithm 4. The inner product and |s|_1 run over ALL variables, so
    there is one d for the model. As in the authors' code r and s are divided by d_0 (to stay away from 0), and epsilon
    is multiplied by the new d, the step by the old one.

    Args: learning_rate, a factor of the step size found: 1, or a schedule that falls from 1 to 0; beta_1, beta_2 in
    [0, 1); beta_3 in [0, 1), sqrt(beta_2) if None; epsilon above 0; weight_decay, decoupled:
    w -= rate * d * weight_decay * w; d0 above 0, the first d, to be too small rather than too large; d_coef above 0,
    2 or 0.5 for a larger or smaller step; growth_rate above 1, by how much d may grow in one update once it has left
    d0, None for any; use_bias_correction, Adam's; safeguard_warmup leaves rate out of s: set it with a warm-up.
    """

    decays = False

    def __init__(
        self,
        learning_rate=1.0,
        beta_1=0.9,
        beta_2=0.999,
        beta_3=None,
        epsilon=1e-8,
        weight_decay=0.0,
        d0=1e-6,
        d_coef=1.0,
        growth_rate=None,
        use_bias_correction=False,
        safeguard_warmup=False,
        **options,
    ):
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.beta_3 = ranges.optional(ranges.fraction, "beta_3", beta_3)
        self.epsilon = ranges.positive("epsilon", epsilon)
        self.d0 = ranges.positive("d0", d0)
        self.d_coef = ranges.positive("d_coef", d_coef)
        self.growth_rate = ranges.optional(above_one, "growth_rate", growth_rate)
        self.use_bias_correction = bool(use_bias_correction)
        self.safeguard_warmup = bool(safeguard_warmup)

    def slots(self, variable):
        return {"m": Slot(), "v": Slot(), "s": Slot(), "start": Slot("weights")}

    def shared(self):
        return {"d": self.d0, "d_max": self.d0, "r": 0.0}

    def update_all(self, gradients, weights, slots, steps, shared):
        d, kind = shared["d"], shared["d"].dtype
        beta_3 = math.sqrt(self.beta_2) if self.beta_3 is None else self.beta_3
        old = [ops.cast(d, w.dtype) for w in weights]
        rates = [o * factor(step, self) for o, step in zip(old, steps, strict=True)]
        ahead = [
            ops.cast(o * rate, kind) / self.d0 * total([g * (slot["start"] - w)], kind)
            for o, rate, g, slot, w in zip(old, rates, gradients, slots, weights, strict=True)
        ]
        r = beta_3 * shared["r"] + sum(ahead)
        sums = [
            beta_3 * slot["s"] + o / self.d0 * (o if self.safeguard_warmup else rate) * g
            for o, rate, g, slot in zip(old, rates, gradients, slots, strict=True)
        ]
        length = total([ops.abs(s) for s in sums], kind)
        # No gradient has been other than 0 yet if the length is 0: d stays.
        estimate = ops.where(length > 0, self.d_coef * r / ops.where(length > 0, length, ops.ones_like(length)), 0.0)
        new = grown(estimate, shared, self.d0, self.growth_rate)
        each = zip(gradients, weights, slots, sums, old, rates, steps, strict=True)
        pairs = [self._move(g, w, slot, s, o, rate, step, new["d"]) for g, w, slot, s, o, rate, step in each]
        return [delta for delta, _ in pairs], [slot for _, slot in pairs], {**new, "r": r}

    def _move(self, gradient, weight, slots, s, d, rate, step, new_d):
        m = moved(slots["m"], d * gradient, self.beta_1)
        v = moved(slots["v"], ops.square(d * gradient), self.beta_2)
        direction = m / (ops.sqrt(v) + self.epsilon * ops.cast(new_d, weight.dtype))
        if self.weight_decay and self._use_weight_decay(step.variable):
            direction = direction + self.weight_decay * weight
        return -rate * direction, {"m": m, "v": v, "s": s, "start": slots["start"]}


def factor(step, rule):
    """The learning rate, with what Adam's bias correction makes of it if the rule wants that."""
    if not rule.use_bias_correction:
        return step.rate
    return step.rate * ops.sqrt(debias(rule.beta_2, step.t)) / debias(rule.beta_1, step.t)


def grown(estimate, shared: dict, d0: float, growth_rate: float | None) -> dict:
    """{d, d_max} after an estimate: the largest so far, which d may approach at growth_rate once it has left d0."""
    d_max = ops.maximum(shared["d_max"], estimate)
    if growth_rate is None:
        return {"d": d_max, "d_max": d_max}
    d = shared["d"]
    first = d <= d0 * (1 + 1e-6)  # d is d0 up to the rounding of its variable
    d = ops.where(first, ops.maximum(d, estimate), d)
    return {"d": ops.minimum(d_max, d * growth_rate), "d_max": d_max}


def above_one(name: str, value) -> float:
    if ranges.positive(name, value) <= 1:
        raise ValueError(f"{name} must be a number above 1, got {value!r}.")
    return float(value)
