"""Lookahead: some fast steps forward, one slow step after them."""

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.averaging import Follower
from custom_optimizers.optimizer import Slot


@saving.register_keras_serializable("minibatch")
class Lookahead(Follower):
    """The inner optimizer moves the weights; after every sync_period-th update they and the slow weights meet:

        slow += slow_step_size * (w - slow);  w = slow

    Zhang et al., Lookahead Optimizer: k steps forward, 1 step back (1907.08610), algorithm 1. The inner optimizer keeps
    its moments at the meeting. The slow weights start as the weights before the first update; they are the ones to
    evaluate, and the ones that fit leaves in the model: see evaluation_weights.

    Args: inner; sync_period, whole, above 0; slow_step_size in [0, 1], 1 for the inner optimizer itself. Raises
    ValueError for LazyAdam and the like, which do not move every row, and for Schedule-Free optimizers.
    """

    def __init__(self, inner, sync_period=6, slow_step_size=0.5, **options):
        super().__init__(inner, **options)
        self.sync_period = ranges.whole("sync_period", sync_period)
        self.slow_step_size = ranges.share("slow_step_size", slow_step_size)

    def own(self):
        return {"slow": Slot("weights")}

    def follow(self, landed, slots, step):
        meets = ops.equal(ops.mod(step.t, self.sync_period), 0)
        met = (1 - self.slow_step_size) * slots["slow"] + self.slow_step_size * landed
        return ops.where(meets, met, landed), {"slow": ops.where(meets, met, slots["slow"])}

    def evaluation(self, weight, slots):
        return slots["slow"]
