"""SWATS: Adam that hands over to SGD, at a learning rate it has measured."""

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.adam import adam
from custom_optimizers.moments import debias, moved
from custom_optimizers.optimizer import Optimizer, Slot
from custom_optimizers.prodigy import total


@saving.register_keras_serializable("minibatch")
class SWATS(Optimizer):
    """Adam, p = -rate * m^ / (sqrt(v^) + epsilon), until the SGD rate that would have moved as far along p settles:

        gamma = <p, p> / -<p, g>;  lambda = beta_2 * lambda + (1 - beta_2) * gamma;  lambda^ = lambda / (1 - beta_2^t)

    At the first update after the first one with |lambda^ - gamma| < tolerance * lambda^, that rate is fixed and SGD
    goes on from the next update:  u = beta_1 * u + g;  w -= (1 - beta_1) * lambda^ * u.

    Keskar and Socher, Improving Generalization Performance by Switching from Adam to SGD (1712.07628), algorithm 1. The
    inner products run over ALL variables: there is one switch. The paper asks for |lambda^ - gamma| < 1e-9, which
    float32 does not resolve; the criterion here is relative. A learning rate that changes after the switch changes
    SGD's in proportion. `switched` tells whether SGD has taken over.

    Args: learning_rate, Adam's; beta_1, beta_2 in [0, 1); epsilon above 0; tolerance above 0: a gamma that is noisy
    falls within it about once in 1 / tolerance updates even if nothing settles, and on smooth problems a wide one
    switches in the first updates, when the average is of few gammas.
    """

    def __init__(self, learning_rate=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-8, tolerance=1e-4, **options):
        super().__init__(learning_rate, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.epsilon = ranges.positive("epsilon", epsilon)
        self.tolerance = ranges.positive("tolerance", tolerance)

    def slots(self, variable):
        return {"m": Slot(), "v": Slot()}  # m is SGD's u after the switch

    def shared(self):
        return {"average": 0.0, "ratio": 0.0}  # lambda; SGD's rate / Adam's rate, 0 before the switch

    @property
    def switched(self) -> bool:
        return bool(self.built and self._state.slots) and float(ops.convert_to_tensor(self._state.shared["ratio"])) > 0

    def update_all(self, gradients, weights, slots, steps, shared):
        kind, ratio = shared["ratio"].dtype, shared["ratio"]
        switched = ratio > 0
        moves = [
            adam(g, slot["m"], slot["v"], step.t, self.beta_1, self.beta_2, self.epsilon)
            for g, slot, step in zip(gradients, slots, steps, strict=True)
        ]
        moves = [(-step.rate * direction, m, v) for step, (direction, m, v) in zip(steps, moves, strict=True)]
        average, found = self._measure(gradients, [p for p, _, _ in moves], steps[0], shared, kind)
        leaves = ops.logical_and(ops.logical_not(switched), found > 0)
        deltas, new = [], []
        for g, slot, step, (p, m, v) in zip(gradients, slots, steps, moves, strict=True):
            u = self.beta_1 * slot["m"] + g
            sgd = -(1 - self.beta_1) * ops.cast(ratio, g.dtype) * step.rate * u
            deltas.append(ops.where(switched, sgd, p))
            m = ops.where(leaves, ops.zeros_like(m), m)
            new.append({"m": ops.where(switched, u, m), "v": ops.where(switched, slot["v"], v)})
        return deltas, new, {"average": average, "ratio": ops.where(switched, ratio, found)}

    def _measure(self, gradients, moves, step, shared, kind):
        """(lambda, SGD's rate / Adam's rate if it has settled now, else 0)."""
        t, rate = ops.cast(step.t, kind), ops.cast(step.base, kind)
        along = -total([p * g for p, g in zip(moves, gradients, strict=True)], kind)
        length = total([ops.square(p) for p in moves], kind)
        known = ops.not_equal(along, 0.0)
        gamma = length / ops.where(known, along, ops.ones_like(along))
        average = ops.where(known, moved(shared["average"], gamma, self.beta_2), shared["average"])
        unbiased = average / debias(self.beta_2, t)
        settled = ops.abs(unbiased - gamma) < self.tolerance * unbiased  # never if lambda^ is not above 0
        settled = ops.logical_and(ops.logical_and(settled, known), t > 1)
        return average, ops.where(settled, unbiased / ops.where(rate > 0, rate, ops.ones_like(rate)), 0.0)
