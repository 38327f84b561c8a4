"""Learning rates that rise and fall, again and again or once, and the momentum that goes against them.

As in schedules.py: functions of the number of updates, counted from 0; float32 in the shape of the steps; ValueError
for an argument out of range, naming it. Where low is above high they start with the fall.
"""

import math

from keras import ops, saving
from keras.optimizers.schedules import LearningRateSchedule

from custom_optimizers import ranges
from custom_optimizers.decays import between


@saving.register_keras_serializable("minibatch")
class Triangular(LearningRateSchedule):
    """rate(t) = low + (high - low) * max(0, 1 - |t / half_cycle - 2 * cycle + 1|).

    cycle = floor(1 + t / (2 * half_cycle)), from 1.

    Rises from `low` to `high` in half_cycle updates and falls back, again and again: Smith, Cyclical Learning Rates
    for Training Neural Networks (1506.01186), section 3.2.

    Args: low and high, rates of 0 or above; half_cycle, in updates (the paper: 2 to 10 epochs), from 1.
    """

    def __init__(self, low: float, high: float, half_cycle: int):
        self.low, self.high = ranges.not_negative("low", low), ranges.not_negative("high", high)
        self.half_cycle = ranges.whole("half_cycle", half_cycle)

    def __call__(self, step):
        step = ops.cast(step, "float32")
        t = step / float(self.half_cycle)
        cycle = ops.floor(1.0 + t / 2.0)
        height = ops.maximum(0.0, 1.0 - ops.abs(t - 2.0 * cycle + 1.0))
        return self.low + (self.high - self.low) * height * self.scale(cycle, step)

    def scale(self, cycle, step):
        """What the triangle's height is multiplied by in this cycle, from 1, and after this many updates."""
        return 1.0

    def get_config(self):
        return {"low": self.low, "high": self.high, "half_cycle": self.half_cycle}


@saving.register_keras_serializable("minibatch")
class Triangular2(Triangular):
    """Triangular with the height halved after every cycle: high - low times 1 / 2^(cycle - 1)."""

    def scale(self, cycle, step):
        return 2.0 ** (1.0 - cycle)


@saving.register_keras_serializable("minibatch")
class ExpRange(Triangular):
    """Triangular with the height shrinking at every update t: high - low times gamma^t. gamma in (0, 1]."""

    def __init__(self, low: float, high: float, half_cycle: int, gamma: float = 0.99994):
        super().__init__(low, high, half_cycle)
        self.gamma = ranges.positive("gamma", ranges.share("gamma", gamma))

    def scale(self, cycle, step):
        return ops.exp(step * math.log(self.gamma))  # gamma itself, rounded to float32, would be off after 10,000

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}


class _Swing(LearningRateSchedule):
    """outer -> inner -> end, the turn at update int(rise * (total_steps - 1)), the end at update total_steps - 1."""

    def __init__(self, total_steps: int, rise: float, anneal: str):
        self.total_steps = ranges.whole("total_steps", total_steps, least=2)
        self.rise = ranges.fraction("rise", rise)
        self.anneal = ranges.one_of("anneal", anneal, ("cosine", "linear"))

    def _swing(self, step, first: float, turn: float, end: float):
        step = ops.cast(step, "float32")
        last = self.total_steps - 1
        top = int(self.rise * last)
        up = between(first, turn, self._eased(step / float(max(top, 1))))
        down = between(turn, end, self._eased((step - top) / float(max(last - top, 1))))
        return ops.where(step < top, up, down)

    def _eased(self, share):
        share = ops.clip(share, 0.0, 1.0)
        return share if self.anneal == "linear" else (1.0 - ops.cos(math.pi * share)) / 2.0


@saving.register_keras_serializable("minibatch")
class OneCycle(_Swing):
    """From peak / div_factor up to peak and down to peak / (div_factor * final_div_factor), in total_steps updates.

    Smith and Topin, Super-Convergence (1708.07120), in the two-phase form of torch's and optax's. Updates count from
    0, so the last one is number total_steps - 1, and it is the one made at exactly the final rate; later ones stay
    there. The peak is at update int(rise * (total_steps - 1)), which is where torch's OneCycleLR has it when
    rise * total_steps is whole. optax's cosine_onecycle_schedule(n) reaches its end at update n, so it is this one with
    total_steps = n + 1.

    Args: peak, a rate of 0 or above; total_steps from 2; rise in [0, 1), the part of the updates before the peak;
    div_factor and final_div_factor above 0; anneal, "cosine" or "linear".
    """

    def __init__(
        self, peak: float, total_steps: int, rise=0.3, div_factor=25.0, final_div_factor=1e4, anneal: str = "cosine"
    ):
        super().__init__(total_steps, rise, anneal)
        self.peak = ranges.not_negative("peak", peak)
        self.div_factor = ranges.positive("div_factor", div_factor)
        self.final_div_factor = ranges.positive("final_div_factor", final_div_factor)

    def __call__(self, step):
        first = self.peak / self.div_factor
        return self._swing(step, first, self.peak, first / self.final_div_factor)

    def momentum(self, low: float = 0.85, high: float = 0.95) -> "OneCycleMomentum":
        """The momentum to go with it: high at the first update, low at the peak of the rate, high again at the end."""
        return OneCycleMomentum(low, high, self.total_steps, self.rise, self.anneal)

    def get_config(self):
        names = ("peak", "total_steps", "rise", "div_factor", "final_div_factor", "anneal")
        return {name: getattr(self, name) for name in names}


@saving.register_keras_serializable("minibatch")
class OneCycleMomentum(_Swing):
    """What OneCycle.momentum() returns: high -> low -> high, low at the peak of the rate. low and high in [0, 1)."""

    def __init__(self, low: float, high: float, total_steps: int, rise: float = 0.3, anneal: str = "cosine"):
        super().__init__(total_steps, rise, anneal)
        self.low, self.high = ranges.fraction("low", low), ranges.fraction("high", high)

    def __call__(self, step):
        return self._swing(step, self.high, self.low, self.high)

    def get_config(self):
        return {name: getattr(self, name) for name in ("low", "high", "total_steps", "rise", "anneal")}
