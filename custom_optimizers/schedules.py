"""Learning-rate schedules that Keras lacks: functions of the number of updates, composable with Keras' own."""

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule


@keras.saving.register_keras_serializable("minibatch")
class WarmUp(LearningRateSchedule):
    """rate(t) = after(0) * (t + 1) / steps for t < steps, then after(t - steps).

    The first update is made at after(0) / steps, never at zero. `after` is a number or any schedule.
    """

    def __init__(self, after, steps: int):
        if not steps > 0:
            raise ValueError(f"steps must be above 0, got {steps}.")
        self.after, self.steps = after, steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        steps = float(self.steps)
        rise = self._after(ops.zeros_like(step)) * (step + 1.0) / steps
        return ops.where(step < steps, rise, self._after(ops.maximum(step - steps, 0.0)))

    def _after(self, step):
        return self.after(step) if callable(self.after) else ops.cast(self.after, "float32") * ops.ones_like(step)

    def get_config(self):
        after = keras.saving.serialize_keras_object(self.after) if callable(self.after) else self.after
        return {"after": after, "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        after = config["after"]
        after = keras.saving.deserialize_keras_object(after) if isinstance(after, dict) else after
        return cls(after, config["steps"])


@keras.saving.register_keras_serializable("minibatch")
class Triangular(LearningRateSchedule):
    """rate(t) = low + (high - low) * max(0, 1 - |t / half_cycle - 2 * floor(1 + t / (2 * half_cycle)) + 1|).

    Rises from `low` to `high` in `half_cycle` updates and falls back, again and again (Smith, Cyclical Learning
    Rates for Training Neural Networks, 2017).
    """

    def __init__(self, low: float, high: float, half_cycle: int):
        if not half_cycle > 0:
            raise ValueError(f"half_cycle must be above 0, got {half_cycle}.")
        self.low, self.high, self.half_cycle = low, high, half_cycle

    def __call__(self, step):
        t = ops.cast(step, "float32") / float(self.half_cycle)
        cycle = ops.floor(1.0 + t / 2.0)
        return self.low + (self.high - self.low) * ops.maximum(0.0, 1.0 - ops.abs(t - 2.0 * cycle + 1.0))

    def get_config(self):
        return {"low": self.low, "high": self.high, "half_cycle": self.half_cycle}
