"""Gradient descent, plain and with momentum."""

from keras import ops, saving
from keras.optimizers.schedules import LearningRateSchedule

from custom_optimizers import ranges
from custom_optimizers.optimizer import Optimizer, Slot


@saving.register_keras_serializable("minibatch")
class SGD(Optimizer):
    """w -= rate * g. Keeps no state, and for a sparse gradient touches its rows only, which is exact.

    Args: learning_rate. (Weight decay, if any, acts on the rows touched.)
    """

    lazy = True

    def __init__(self, learning_rate=0.01, **options):
        super().__init__(learning_rate, **options)

    def update(self, gradient, weight, slots, step):
        return -step.rate * gradient, {}


@saving.register_keras_serializable("minibatch")
class Momentum(Optimizer):
    """velocity = momentum * velocity - rate * g; w += velocity, or w += momentum * velocity - rate * g with nesterov.

    Polyak (1964) and, in the form of Sutskever et al. (ICML 2013), Nesterov. The rate is inside the velocity, as in
    Keras: a change of it does not rescale steps already under way (in torch and optax it does).

    Args: learning_rate; momentum in [0, 1), or a Keras schedule of it, counted in updates as the learning rate's is;
    nesterov; lazy, whether a sparse gradient moves its own rows only: velocity and weights of the others stay bit for
    bit, and the cost is that of the rows. lazy=False moves all rows, as a dense gradient would.
    """

    def __init__(self, learning_rate=0.01, momentum=0.9, nesterov=False, lazy=True, **options):
        super().__init__(learning_rate, **options)
        if isinstance(momentum, dict):
            momentum = saving.deserialize_keras_object(momentum)
        scheduled = isinstance(momentum, LearningRateSchedule)
        self.momentum = momentum if scheduled else ranges.fraction("momentum", momentum)
        self.nesterov = bool(nesterov)
        self.lazy = bool(lazy)

    def slots(self, variable):
        return {"velocity": Slot()}

    def update(self, gradient, weight, slots, step):
        momentum = self.momentum
        if isinstance(momentum, LearningRateSchedule):
            momentum = ops.cast(momentum(step.t - 1), step.rate.dtype)
        push = step.rate * gradient
        velocity = momentum * slots["velocity"] - push
        return momentum * velocity - push if self.nesterov else velocity, {"velocity": velocity}

    def get_config(self):
        config = super().get_config()
        if isinstance(self.momentum, LearningRateSchedule):
            config["momentum"] = saving.serialize_keras_object(self.momentum)
        return config
