"""FTRL-Proximal: linear models on sparse features, with weights that are exactly zero."""

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.optimizer import Optimizer, Slot


@saving.register_keras_serializable("minibatch")
class Ftrl(Optimizer):
    """n += g^2; z += g - (n^p - n_before^p) / rate * w; w = (clip(z, -l1, l1) - z) / ((beta + n^p) / rate + 2 * l2)

    with p = -learning_rate_power, n and z of the shape of w, z from zero. McMahan et al., Ad Click Prediction: a View
    from the Trenches (KDD 2013), algorithm 1, in Keras' arguments: the paper's lambda_2 is 2 * l2, its n starts at 0
    and its beta is about 1. Weights are a function of z and n; they are meant to start at zero, and others are pulled
    there by the first dense gradients.

    A sparse gradient touches its rows only. That is exact while the learning rate is constant, shrinkage is 0 and the
    table started at zero: a row without gradient does not move.

    Args: learning_rate (it divides: an update at rate 0 is left out); learning_rate_power of 0 or below;
    initial_accumulator_value, first value of n; l1_regularization_strength; l2_regularization_strength;
    l2_shrinkage_regularization_strength, adds 2 * shrinkage * w to the gradient in z, but not in n; beta; all of 0 or
    above. Raises ValueError where n, beta and l2 are all zero at the start, for which w is 0 / 0.
    """

    lazy = True

    def __init__(
        self,
        learning_rate=0.001,
        learning_rate_power=-0.5,
        initial_accumulator_value=0.1,
        l1_regularization_strength=0.0,
        l2_regularization_strength=0.0,
        l2_shrinkage_regularization_strength=0.0,
        beta=0.0,
        **options,
    ):
        super().__init__(learning_rate, **options)
        self.learning_rate_power = ranges.not_positive("learning_rate_power", learning_rate_power)
        self.initial_accumulator_value = ranges.not_negative("initial_accumulator_value", initial_accumulator_value)
        self.l1_regularization_strength = ranges.not_negative("l1_regularization_strength", l1_regularization_strength)
        self.l2_regularization_strength = ranges.not_negative("l2_regularization_strength", l2_regularization_strength)
        self.l2_shrinkage_regularization_strength = ranges.not_negative(
            "l2_shrinkage_regularization_strength", l2_shrinkage_regularization_strength
        )
        self.beta = ranges.not_negative("beta", beta)
        held = self.initial_accumulator_value or self.beta or self.l2_regularization_strength
        if self.learning_rate_power and not held:
            raise ValueError("one of initial_accumulator_value, beta and l2_regularization_strength must be above 0.")

    def slots(self, variable):
        return {"accumulator": Slot(self.initial_accumulator_value), "linear": Slot()}

    def update(self, gradient, weight, slots, step):
        moves = step.rate > 0
        rate = ops.where(moves, step.rate, 1.0)
        power, l1 = -self.learning_rate_power, self.l1_regularization_strength
        n = slots["accumulator"] + ops.square(gradient)
        root = n**power
        slope = gradient + 2 * self.l2_shrinkage_regularization_strength * weight
        z = slots["linear"] + slope - (root - slots["accumulator"] ** power) / rate * weight
        kept = ops.where(ops.abs(z) <= l1, 0.0, z - ops.sign(z) * l1)
        curve = (self.beta + root) / rate + 2 * self.l2_regularization_strength
        new = {"accumulator": n, "linear": z}
        delta = ops.where(moves, -kept / curve - weight, 0.0)
        return delta, {name: ops.where(moves, value, slots[name]) for name, value in new.items()}
