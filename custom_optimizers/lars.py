"""LARS: a learning rate for each layer, for very large batches."""

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.optimizer import Optimizer, Slot


def trust(w, g, weight_decay: float, coefficient: float):
    """coefficient * |w| / (|g| + weight_decay * |w|), a scalar; 1 where w or g is zero, so that zero weights move."""
    size, slope = ops.sqrt(ops.sum(ops.square(w))), ops.sqrt(ops.sum(ops.square(g)))
    known = ops.logical_and(size > 0, slope > 0)
    ratio = coefficient * size / ops.where(known, slope + weight_decay * size, 1.0)
    return ops.where(known, ratio, 1.0)


@saving.register_keras_serializable("minibatch")
class LARS(Optimizer):
    """velocity = momentum * velocity + rate * trust * (g + weight_decay * w); w -= velocity

    with trust = trust_coefficient * |w| / (|g| + weight_decay * |w|), the norms of one variable. You, Gitman and
    Ginsburg, Large Batch Training of Convolutional Networks (1708.03888), algorithm 1. (optax divides by the norm of
    the sum, |g + weight_decay * w|.) Vectors and scalars, which are biases and normalization, move as by momentum,
    without trust or weight decay, unless adapt_vectors.

    Args: learning_rate (much larger than for momentum; warm up); momentum in [0, 1); weight_decay of 0 or above;
    trust_coefficient above 0; adapt_vectors, whether vectors and scalars are treated as the others.
    """

    decays = False

    def __init__(
        self,
        learning_rate=1.0,
        momentum=0.9,
        weight_decay=0.0005,
        trust_coefficient=0.001,
        adapt_vectors=False,
        **options,
    ):
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.momentum = ranges.fraction("momentum", momentum)
        self.trust_coefficient = ranges.positive("trust_coefficient", trust_coefficient)
        self.adapt_vectors = bool(adapt_vectors)

    def slots(self, variable):
        return {"velocity": Slot()}

    def update(self, gradient, weight, slots, step):
        rate = step.rate
        if self.adapt_vectors or len(step.variable.shape) > 1:
            decay = (self.weight_decay or 0.0) if self._use_weight_decay(step.variable) else 0.0
            rate = rate * trust(weight, gradient, decay, self.trust_coefficient)
            gradient = gradient + decay * weight
        velocity = self.momentum * slots["velocity"] + rate * gradient
        return -velocity, {"velocity": velocity}
