"""Learning rates that decay once: functions of the number of updates, counted from 0. See schedules.py."""

import math

from keras import ops, saving
from keras.optimizers.schedules import LearningRateSchedule

from custom_optimizers import ranges


@saving.register_keras_serializable("minibatch")
class WarmUpCosine(LearningRateSchedule):
    """peak * (t + 1) / warmup_steps for t < warmup_steps, then half a cosine wave down to `final`:

        final + (peak - final) * (1 + cos(pi * u)) / 2,  u = (t - warmup_steps) / (total_steps - warmup_steps) up to 1

    Loshchilov and Hutter, SGDR (1608.03983), equation 5, without restarts. `final` is reached at t = total_steps, which
    is after the last of total_steps updates, as in Keras and optax.

    Args: peak and final, rates of 0 or above; warmup_steps from 0; total_steps, warm-up included, above warmup_steps.
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int, final: float = 0.0):
        self.peak, self.final = ranges.not_negative("peak", peak), ranges.not_negative("final", final)
        self.warmup_steps = ranges.whole("warmup_steps", warmup_steps, least=0)
        self.total_steps = ranges.whole("total_steps", total_steps, least=self.warmup_steps + 1)

    def __call__(self, step):
        step = ops.cast(step, "float32")
        u = _progress(step, self.warmup_steps, self.total_steps - self.warmup_steps)
        fall = between(self.peak, self.final, (1.0 - ops.cos(math.pi * u)) / 2.0)
        return _warmed(step, self.peak, self.warmup_steps, fall)

    def get_config(self):
        return {name: getattr(self, name) for name in ("peak", "warmup_steps", "total_steps", "final")}


@saving.register_keras_serializable("minibatch")
class LinearToZero(LearningRateSchedule):
    """rate(t) = peak * (1 - t / total_steps), 0 from t = total_steps: the last update is made at peak / total_steps.

    Defazio et al., Optimal Linear Decay Learning Rate Schedules and Further Refinements (2310.07831). Put it into a
    WarmUp for a rise before it.

    Args: peak, a rate of 0 or above; total_steps from 1.
    """

    def __init__(self, peak: float, total_steps: int):
        self.peak = ranges.not_negative("peak", peak)
        self.total_steps = ranges.whole("total_steps", total_steps)

    def __call__(self, step):
        return self.peak * (1.0 - _progress(ops.cast(step, "float32"), 0, self.total_steps))

    def get_config(self):
        return {"peak": self.peak, "total_steps": self.total_steps}


@saving.register_keras_serializable("minibatch")
class WSD(LearningRateSchedule):
    """Warm-up, stable, decay: peak * (t + 1) / warmup_steps, then peak, then over the last decay_steps

        final + (peak - final) * (1 - u)        decay="linear"
        final + (peak - final) * (1 - sqrt(u))  decay="1-sqrt"      u = (t - warmup_steps - stable_steps) / decay_steps

    Hu et al., MiniCPM (2404.06395), section 4.2; the shape 1-sqrt is that of Hägele et al., Scaling Laws Beyond Fixed
    Training Durations (2405.18392). `final` is reached at u = 1, after the last update. A checkpoint of the stable
    part can be decayed, or trained on for longer, with a new schedule.

    Args: peak and final, rates of 0 or above; warmup_steps and stable_steps from 0; decay_steps from 1.
    """

    def __init__(self, peak, warmup_steps: int, stable_steps: int, decay_steps: int, final=0.0, decay="linear"):
        self.peak, self.final = ranges.not_negative("peak", peak), ranges.not_negative("final", final)
        self.warmup_steps = ranges.whole("warmup_steps", warmup_steps, least=0)
        self.stable_steps = ranges.whole("stable_steps", stable_steps, least=0)
        self.decay_steps = ranges.whole("decay_steps", decay_steps)
        self.decay = ranges.one_of("decay", decay, ("linear", "1-sqrt"))

    def __call__(self, step):
        step = ops.cast(step, "float32")
        u = _progress(step, self.warmup_steps + self.stable_steps, self.decay_steps)
        fall = between(self.peak, self.final, ops.sqrt(u) if self.decay == "1-sqrt" else u)
        return _warmed(step, self.peak, self.warmup_steps, fall)

    def get_config(self):
        names = ("peak", "warmup_steps", "stable_steps", "decay_steps", "final", "decay")
        return {name: getattr(self, name) for name in names}


def between(first: float, last: float, share):
    """first at share 0, last at share 1, both to the last bit."""
    return first * (1.0 - share) + last * share


def _progress(step, begin: int, length: int):
    return ops.clip((step - begin) / float(length), 0.0, 1.0)


def _warmed(step, peak: float, warmup_steps: int, after):
    return ops.where(step < warmup_steps, peak * (step + 1.0) / float(max(warmup_steps, 1)), after)
