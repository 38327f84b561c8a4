"""Schedule-Free descent: no decay of the learning rate, an average of the iterates instead."""

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.moments import debias, moved
from custom_optimizers.optimizer import Optimizer, Slot


class ScheduleFree(Optimizer):
    """Defazio et al., The Road Less Scheduled (2405.15682), algorithm 1, with direction d and rate_t after warm-up:

        z -= rate * d(y);  x = (1 - c) * x + c * z;  y = (1 - beta_1) * z + beta_1 * x
        c = rate_max^2 / (sum of rate_max^2 so far), rate_max the largest rate so far

    The model holds y, where gradients are taken; z is a slot; x, the weights to evaluate and export, is
    y + (1 / beta_1 - 1) * (y - z): see evaluation_weights. Weight decay is taken at y and enters d.
    """

    decays = False
    two_points = follows = True

    def slots(self, variable):
        return {"z": Slot("weights")}

    def shared(self):
        return {"weight_sum": 0.0, "rate_max": 0.0}

    def direction(self, gradient, slots: dict, step):
        """(d, new slots) of the inner rule."""
        return gradient, {}

    def update_all(self, gradients, weights, slots, steps, shared):
        rate_max = ops.maximum(shared["rate_max"], ops.cast(steps[0].base, shared["rate_max"].dtype))
        share = ops.square(rate_max)
        weight_sum = shared["weight_sum"] + share
        c = ops.where(weight_sum > 0, share / ops.maximum(weight_sum, 1e-30), 0.0)
        pairs = [self._move(*each, c) for each in zip(gradients, weights, slots, steps, strict=True)]
        deltas, slots = [delta for delta, _ in pairs], [new for _, new in pairs]
        return deltas, slots, {"weight_sum": weight_sum, "rate_max": rate_max}

    def _move(self, gradient, y, slots, step, c):
        d, new = self.direction(gradient, slots, step)
        if self.weight_decay and self._use_weight_decay(step.variable):
            d = d + self.weight_decay * y
        z, c = slots["z"], ops.cast(c, y.dtype)
        delta = c * (z - y) + step.rate * (self.beta_1 * (1 - c) - 1) * d
        return delta, {**new, "z": z - step.rate * d}

    def evaluation(self, weight, slots):
        return weight + (1 / self.beta_1 - 1) * (weight - slots["z"])

    def training(self, weight, slots):
        return (1 - self.beta_1) * slots["z"] + self.beta_1 * weight


@saving.register_keras_serializable("minibatch")
class ScheduleFreeAdamW(ScheduleFree):
    """Schedule-Free with d = g / (sqrt(v^) + epsilon) + weight_decay * y, v^ the unbiased average of g^2.

    Args: learning_rate (1 to 10 times that of AdamW; warm up, do not decay); beta_1 in (0, 1), 0.9, or 0.98 for very
    long runs; beta_2 in [0, 1); epsilon above 0; weight_decay.
    """

    def __init__(self, learning_rate=0.0025, beta_1=0.9, beta_2=0.999, epsilon=1e-8, weight_decay=0.0, **options):
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = ranges.positive("beta_1", ranges.fraction("beta_1", beta_1))
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.epsilon = ranges.positive("epsilon", epsilon)

    def slots(self, variable):
        return {**super().slots(variable), "v": Slot()}

    def direction(self, gradient, slots, step):
        v = moved(slots["v"], ops.square(gradient), self.beta_2)
        return gradient / (ops.sqrt(v / debias(self.beta_2, step.t)) + self.epsilon), {"v": v}


@saving.register_keras_serializable("minibatch")
class ScheduleFreeSGD(ScheduleFree):
    """Schedule-Free with d = g + weight_decay * y.

    Args: learning_rate (10 to 50 times that of SGD with momentum and a schedule); beta_1 in (0, 1); weight_decay.
    """

    def __init__(self, learning_rate=1.0, beta_1=0.9, weight_decay=0.0, **options):
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = ranges.positive("beta_1", ranges.fraction("beta_1", beta_1))
