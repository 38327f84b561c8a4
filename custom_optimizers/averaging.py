"""Averages of the weights along the way."""

from keras import ops, saving

from custom_optimizers import ranges
from custom_optimizers.adagrad import Adagrad, RowWiseAdagrad
from custom_optimizers.momentum import SGD
from custom_optimizers.optimizer import Slot
from custom_optimizers.wrapper import Wrapper


class Follower(Wrapper):
    """A wrapper that looks at the weights each inner update leads to, weight decay and constraint included.

    It moves every row. Raises ValueError for an inner optimizer that does not move rows without gradient, unless they
    would stay anyway, and for one that evaluates at other weights than it trains.
    """

    lazy = False
    follows = True
    decays = False  # it is done here, as a part of the inner update

    def __init__(self, inner, **options):
        super().__init__(inner, **options)
        rule = self.inner
        while isinstance(rule, Wrapper):
            rule = rule.inner
        if rule.lazy and type(rule) not in (SGD, Adagrad, RowWiseAdagrad):  # not Momentum, which is a subclass
            raise ValueError(
                f"{type(self).__name__} needs every row of a variable, and {type(rule).__name__} as it is set up moves "
                "those of the batch only; wrap Adam, AdamW or another optimizer that is not lazy."
            )
        if self.inner.two_points:
            raise ValueError(
                f"{type(self).__name__} cannot wrap {type(self.inner).__name__}, which averages the weights itself."
            )
        nested = self.inner
        while isinstance(nested, Wrapper):
            if isinstance(nested, type(self) | StochasticWeightAveraging):
                raise ValueError(
                    f"{type(self).__name__} cannot wrap {type(nested).__name__}: average outermost, and once."
                )
            nested = nested.inner

    def own(self) -> dict[str, Slot]:
        """The slots of the wrapper itself."""
        raise NotImplementedError

    def follow(self, landed, slots: dict, step):
        """(where the weights go, the wrapper's new slots), given where the inner update leads to."""
        raise NotImplementedError

    def slots(self, variable):
        return {**self.inner.slots(variable), **self.own()}

    def update_all(self, gradients, weights, slots, steps, shared):
        deltas, inner, shared = self.inner.update_all(gradients, weights, slots, steps, shared)
        moves, new = [], []
        for delta, weight, slot, step, of_inner in zip(deltas, weights, slots, steps, inner, strict=True):
            if self.inner.decays and self.weight_decay and self._use_weight_decay(step.variable):
                delta = delta - step.rate * self.weight_decay * weight
            landed = weight + delta
            if step.variable.constraint is not None:
                landed = step.variable.constraint(landed)
            move, own = self.follow(landed, slot, step)
            moves.append(delta if move is landed and step.variable.constraint is None else move - weight)
            new.append({**of_inner, **own})
        return moves, new, shared


@saving.register_keras_serializable("minibatch")
class StochasticWeightAveraging(Follower):
    """Trains as the inner optimizer does; evaluates the mean of the weights at every average_period-th update.

        average = (average * n + w) / (n + 1) after updates start_averaging + 1 + n * average_period, n = 0, 1, ...

    Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization (1803.05407), algorithm 1 and
    equation 1, with the argument names and the counting of TensorFlow Addons' SWA. The model holds w while it trains,
    the average from the end of fit on; see evaluation_weights, and EvaluationWeights(batches) for the statistics of
    batch normalization, which must be taken anew at the average. Give the inner optimizer a learning rate that stays
    high, constant or cyclic, from start_averaging on. Copies the weights once.

    Args: inner; start_averaging, whole, of 0 or above, the updates before the first snapshot is due; average_period,
    whole, above 0. Raises ValueError for LazyAdam and the like and for Schedule-Free optimizers.
    """

    def __init__(self, inner, start_averaging=0, average_period=10, **options):
        super().__init__(inner, **options)
        self.start_averaging = ranges.whole("start_averaging", start_averaging, least=0)
        self.average_period = ranges.whole("average_period", average_period)

    def own(self):
        return {"average": Slot(), "snapshots": Slot(shape=())}

    def follow(self, landed, slots, step):
        since = step.t - (1 + self.start_averaging)
        due = ops.logical_and(since >= 0, ops.equal(ops.mod(since, self.average_period), 0))
        n, average = slots["snapshots"], slots["average"]
        average = ops.where(due, average + (landed - average) / (n + 1), average)
        return landed, {"average": average, "snapshots": ops.where(due, n + 1, n)}

    def evaluation(self, weight, slots):
        return ops.where(slots["snapshots"] > 0, slots["average"], self.inner.evaluation(weight, slots))
