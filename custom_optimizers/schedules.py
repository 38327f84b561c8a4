"""What puts schedules together: a warm-up before any of them, one after another; Keras' own and those of this package.

Optimizers of this package hand over the number of updates made so far, 0 at the first one, also when they accumulate
gradients; Keras' own optimizers hand over the number of mini-batches then. Steps may be one number or a tensor of any
shape, and rates come back in that shape, as float32. Every schedule can be saved: its config holds numbers, names and
the configs of other schedules. Raises ValueError for an argument out of range, naming it.
"""

from keras import ops, saving
from keras.optimizers.schedules import LearningRateSchedule

from custom_optimizers import ranges


@saving.register_keras_serializable("minibatch")
class WarmUp(LearningRateSchedule):
    """rate(t) = after(0) * (t + 1) / steps for t < steps, then after(t - steps).

    The first update is made at after(0) / steps, never at zero. `after` is a rate or any schedule; steps from 1.
    """

    def __init__(self, after, steps: int):
        self.after, self.steps = _rate_or_schedule("after", after), ranges.whole("steps", steps)

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rise = _at(self.after, ops.zeros_like(step)) * (step + 1.0) / float(self.steps)
        return ops.where(step < self.steps, rise, _at(self.after, ops.maximum(step - self.steps, 0.0)))

    def get_config(self):
        return {"after": _config(self.after), "steps": self.steps}


@saving.register_keras_serializable("minibatch")
class Join(LearningRateSchedule):
    """What join(...) returns."""

    def __init__(self, schedules, boundaries):
        self.schedules = [_rate_or_schedule(f"schedules[{i}]", each) for i, each in enumerate(schedules)]
        self.boundaries = [ranges.whole(f"boundaries[{i}]", each) for i, each in enumerate(boundaries)]
        if len(self.schedules) != len(self.boundaries) + 1:
            counts = f"{len(self.schedules)} schedules and {len(self.boundaries)} boundaries"
            raise ValueError(f"boundaries must be one fewer than schedules, got {counts}.")
        if self.boundaries != sorted(set(self.boundaries)):
            raise ValueError(f"boundaries must rise, got {self.boundaries}.")

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rate = _at(self.schedules[0], step)
        for boundary, schedule in zip(self.boundaries, self.schedules[1:], strict=True):
            rate = ops.where(step < boundary, rate, _at(schedule, ops.maximum(step - boundary, 0.0)))
        return rate

    def get_config(self):
        return {"schedules": [_config(each) for each in self.schedules], "boundaries": self.boundaries}


def join(schedules, boundaries) -> Join:
    """schedules[0](t) for t < boundaries[0], then schedules[1](t - boundaries[0]), and so on.

    Each schedule, or rate of 0 or above, starts at its own beginning. boundaries are whole numbers from 1 that rise,
    one fewer than schedules.
    """
    return Join(schedules, boundaries)


def _rate_or_schedule(name: str, value):
    """A rate, or a schedule, or one from its config. A bare function would be lost when the optimizer is saved."""
    if isinstance(value, dict):
        value = saving.deserialize_keras_object(value)
    if isinstance(value, LearningRateSchedule):
        return value
    if callable(value):
        raise ValueError(f"{name} must be a rate or a LearningRateSchedule, which can be saved, got {value!r}.")
    return ranges.not_negative(name, value)


def _at(rate_or_schedule, step):
    if isinstance(rate_or_schedule, LearningRateSchedule):
        return ops.cast(rate_or_schedule(step), "float32")
    return rate_or_schedule * ops.ones_like(step)


def _config(rate_or_schedule):
    is_schedule = isinstance(rate_or_schedule, LearningRateSchedule)
    return saving.serialize_keras_object(rate_or_schedule) if is_schedule else rate_or_schedule
