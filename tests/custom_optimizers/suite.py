"""The table of all optimizers: a line here puts an optimizer into every test of what must hold for each of them.

make(**options) returns a new optimizer with settings under which it descends briskly on the small problems of the
tests; options are those of the base class (clipnorm, gradient_accumulation_steps, use_ema, ...).
"""

import dataclasses
from collections.abc import Callable

import custom_optimizers as suite


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    make: Callable
    jax: bool = True  # runs on the JAX backend


CASES = [
    Case("ADOPT", lambda **o: suite.ADOPT(0.05, **o)),
    Case("Adan", lambda **o: suite.Adan(0.05, weight_decay=0.01, **o)),
    Case("AdEMAMix", lambda **o: suite.AdEMAMix(0.05, alpha_warmup=20, beta_3_warmup=20, **o)),
    Case("Ftrl", lambda **o: suite.Ftrl(0.5, **o)),
    Case("LARS", lambda **o: suite.LARS(1.0, trust_coefficient=0.02, **o)),
    Case("MARS", lambda **o: suite.MARS(0.05, **o)),
    Case("Momentum", lambda **o: suite.Momentum(0.05, **o)),
    Case("Nesterov", lambda **o: suite.Momentum(0.05, nesterov=True, lazy=False, **o)),
    Case("RAdam", lambda **o: suite.RAdam(0.1, **o)),
    Case("SGD", lambda **o: suite.SGD(0.1, **o)),
    Case("Adagrad", lambda **o: suite.Adagrad(0.5, **o)),
    Case("Adam", lambda **o: suite.Adam(0.05, **o)),
    Case("AdamW", lambda **o: suite.AdamW(0.05, weight_decay=0.01, **o)),
    Case("Cautious", lambda **o: suite.Cautious(suite.AdamW(0.05, **o))),
    Case(
        "chain",
        lambda **o: suite.chain(
            suite.adaptive_gradient_clipping(0.5),
            suite.centralize_gradients(),
            suite.clip_by_global_norm(1.0),
            suite.Adam(0.05),
            suite.cautious(),
            suite.decay_weights(0.01, exclude="bias"),
            suite.multiply_learning_rate({"bias": 2.0}),
            **o,
        ),
    ),
    Case("LazyAdam", lambda **o: suite.LazyAdam(0.05, **o)),
    Case("LazyAdamW", lambda **o: suite.LazyAdamW(0.05, weight_decay=0.01, **o)),
    Case("RowWiseAdagrad", lambda **o: suite.RowWiseAdagrad(0.5, **o)),
    Case("ScheduleFreeAdamW", lambda **o: suite.ScheduleFreeAdamW(0.1, weight_decay=0.01, **o)),
    Case("ScheduleFreeSGD", lambda **o: suite.ScheduleFreeSGD(0.5, **o)),
]

each = dict(argnames="case", argvalues=CASES, ids=[case.name for case in CASES])
