"""Adagrad, element by element or with one number a row."""

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.optimizer import Optimizer, Slot


@saving.register_keras_serializable("minibatch")
class Adagrad(Optimizer):
    """s += g^2; w -= rate * g / sqrt(s + epsilon).

    Duchi, Hazan and Singer, Adaptive Subgradient Methods (JMLR 2011). A row without gradient does not move, so touching
    only the rows of a sparse gradient is exact.

    Args: learning_rate; initial_accumulator_value, first value of s, of 0 or above; epsilon above 0.
    """

    lazy = True

    def __init__(self, learning_rate=0.001, initial_accumulator_value=0.1, epsilon=1e-7, **options):
        super().__init__(learning_rate, **options)
        self.initial_accumulator_value = ranges.not_negative("initial_accumulator_value", initial_accumulator_value)
        self.epsilon = ranges.positive("epsilon", epsilon)

    def slots(self, variable):
        return {"accumulator": Slot(self.initial_accumulator_value)}

    def update(self, gradient, weight, slots, step):
        s = slots["accumulator"] + ops.square(gradient)
        return -step.rate * gradient / ops.sqrt(s + self.epsilon), {"accumulator": s}


@saving.register_keras_serializable("minibatch")
class RowWiseAdagrad(Optimizer):
    """s_r += mean_j g_rj^2; w_r -= rate * g_r / (sqrt(s_r) + epsilon): 4 bytes of state for each row of a table.

    The rule of FBGEMM's exact row-wise Adagrad. A row is a slice along the first axis; a vector is one row of its own,
    element by element, as Adagrad.

    Args: learning_rate; initial_accumulator_value, first value of s, of 0 or above; epsilon above 0.
    """

    lazy = True

    def __init__(self, learning_rate=0.01, initial_accumulator_value=0.0, epsilon=1e-8, **options):
        super().__init__(learning_rate, **options)
        self.initial_accumulator_value = ranges.not_negative("initial_accumulator_value", initial_accumulator_value)
        self.epsilon = ranges.positive("epsilon", epsilon)

    def slots(self, variable):
        return {"accumulator": Slot(self.initial_accumulator_value, tuple(variable.shape[:1]))}

    def update(self, gradient, weight, slots, step):
        columns = tuple(range(1, len(gradient.shape)))
        square = ops.square(gradient)
        s = slots["accumulator"] + (ops.mean(square, axis=columns) if columns else square)  # [rows]
        root = ops.expand_dims(ops.sqrt(s) + self.epsilon, columns)  # [rows, 1, ...]
        return -step.rate * gradient / root, {"accumulator": s}
