"""Gradient descent, plain and with momentum."""

from keras import ops, saving
from keras.optimizers.schedules import LearningRateSchedule

from custom_optimizers import ranges
from custom_optimizers.optimizer import Optimizer, Slot


@saving.register_keras_serializable("minibatch")
class SGD(Optimizer):
    """velocity = momentum * velocity - rate * g; w += velocity, or w += momentum * velocity - rate * g with nesterov.

    Polyak (1964) and, in the form of Sutskever et al. (ICML 2013), Nesterov. The rate is inside the velocity, as in
    Keras: a change of it does not rescale steps already under way (in torch and optax it does). Without momentum it
    keeps no state, and a sparse gradient touches its rows only, which is exact; with momentum it moves all rows.

    Args: learning_rate; momentum in [0, 1), or a Keras schedule of it, counted in updates as the learning rate's is;
    nesterov.
    """

    def __init__(self, learning_rate=0.01, momentum=0.0, nesterov=False, **options):
        super().__init__(learning_rate, **options)
        if isinstance(momentum, dict):
            momentum = saving.deserialize_keras_object(momentum)
        scheduled = isinstance(momentum, LearningRateSchedule)
        self.momentum = momentum if scheduled else ranges.fraction("momentum", momentum)
        self.nesterov = bool(nesterov)
        self.lazy = self.additive = not momentum

    def slots(self, variable):
        return {"velocity": Slot()} if self.momentum else {}

    def update(self, gradient, weight, slots, step):
        push, momentum = step.rate * gradient, self.momentum
        if not momentum:
            return -push, {}
        if isinstance(momentum, LearningRateSchedule):
            momentum = ops.cast(momentum(step.t - 1), step.rate.dtype)
        velocity = momentum * slots["velocity"] - push
        return momentum * velocity - push if self.nesterov else velocity, {"velocity": velocity}

    def get_config(self):
        config = super().get_config()
        if isinstance(self.momentum, LearningRateSchedule):
            config["momentum"] = saving.serialize_keras_object(self.momentum)
        return config


@saving.register_keras_serializable("minibatch")
class Momentum(SGD):
    """SGD with momentum that a sparse gradient applies to its own rows: velocity and weights of the others stay bit for
    bit, and the cost is that of the rows.

    Args: those of SGD; lazy=False moves all rows, as a dense gradient would.
    """

    def __init__(self, learning_rate=0.01, momentum=0.9, nesterov=False, lazy=True, **options):
        super().__init__(learning_rate, momentum, nesterov, **options)
        self.lazy = bool(lazy)
