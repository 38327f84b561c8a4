"""Composition: transforms around a base rule, as one Keras optimizer."""

import dataclasses

from keras import saving

from custom_optimizers import transforms
from custom_optimizers.optimizer import Optimizer
from custom_optimizers.transforms import Transform
from custom_optimizers.wrapper import Wrapper


def chain(*links, **options) -> "Chain":
    """One optimizer from transforms and exactly one base rule, in the order in which a gradient passes them.

        chain(clip_by_global_norm(1.0), AdamW(3e-4), cautious(), decay_weights(0.1, exclude="bias"))

    Links before the rule change its gradients, links after it change its steps; multiply_learning_rate may stand
    anywhere. Raises ValueError if there is no rule or more than one, a link stands where it would do nothing, or one
    would change the steps of a rule whose averages follow them (Schedule-Free, Lookahead, StochasticWeightAveraging).
    """
    rules = [place for place, link in enumerate(links) if isinstance(link, Optimizer)]
    for link in links:
        if not isinstance(link, Optimizer | Transform):
            raise ValueError(f"chain takes transforms and one optimizer of custom_optimizers, got {link!r}.")
    if len(rules) != 1:
        raise ValueError(f"chain takes exactly one optimizer, got {len(rules)}.")
    place = rules[0]
    return Chain(links[place], before=links[:place], after=links[place + 1 :], **options)


@saving.register_keras_serializable("minibatch")
class Chain(Wrapper):
    """What chain(...) returns. before and after are lists of transforms or of their configs."""

    def __init__(self, inner, before=(), after=(), **options):
        super().__init__(inner, **options)
        self.__dict__["links"] = tuple(
            [link if isinstance(link, Transform) else transforms.from_config(link) for link in group]
            for group in (before, after)
        )
        for group, hook, name in zip(self.links, ("before", "after"), ("before", "after"), strict=True):
            for link in group:
                if not _does(link, hook) and not _does(link, "rates"):
                    raise ValueError(
                        f"{type(link).__name__} has no effect {name} the optimizer; move it to the other side."
                    )

        if any(_does(link, "after") for link in self.links[1]):
            self.untouched()

    @property
    def before(self):
        return [link.get_config() for link in self.links[0]]

    @property
    def after(self):
        return [link.get_config() for link in self.links[1]]

    def patterns(self):
        return [*super().patterns(), *(pattern for link in self._all() for pattern in link.patterns())]

    def settle(self):
        super().settle()
        for link in self._all():
            link.settle(lambda pattern, variable: self._selection.has(pattern, self._get_variable_index(variable)))

    def _all(self):
        return [*self.links[0], *self.links[1]]

    def paced(self, steps):
        """Here and not in update_all, so that weight decay, which is the core's, is at these rates too."""
        steps = super().paced(steps)
        for link in self._all():
            factors = link.rates(steps)
            steps = [dataclasses.replace(step, rate=step.rate * f) for step, f in zip(steps, factors, strict=True)]
        return steps

    def update_all(self, gradients, weights, slots, steps, shared):
        for link in self.links[0]:
            gradients = link.before(gradients, weights, steps)
        deltas, slots, shared = self.inner.update_all(gradients, weights, slots, steps, shared)
        for link in self.links[1]:
            deltas = link.after(deltas, gradients, weights, steps)
        return deltas, slots, shared


@saving.register_keras_serializable("minibatch")
class Cautious(Wrapper):
    """The inner optimizer, each step masked to where it agrees with the gradient; see transforms.cautious.

    Raises ValueError for Schedule-Free, Lookahead and StochasticWeightAveraging, whose averages follow their steps.
    """

    def __init__(self, inner, **options):
        super().__init__(inner, **options)
        self.untouched()

    def update_all(self, gradients, weights, slots, steps, shared):
        deltas, slots, shared = self.inner.update_all(gradients, weights, slots, steps, shared)
        return transforms.cautious().after(deltas, gradients, weights, steps), slots, shared


def _does(link: Transform, hook: str) -> bool:
    return getattr(type(link), hook) is not getattr(Transform, hook)
