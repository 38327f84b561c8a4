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
    Case("ADOPT", lambda **o: suite.ADOPT(0.05, **{"weight_decay": 0.01, **o})),
    Case("Adan", lambda **o: suite.Adan(0.05, **{"weight_decay": 0.01, **o})),
    Case("AdEMAMix", lambda **o: suite.AdEMAMix(0.05, beta_3=0.99, alpha=2, alpha_warmup=20, beta_3_warmup=20, **o)),
    Case("Ftrl", lambda **o: suite.Ftrl(0.5, **o)),
    Case("LARS", lambda **o: suite.LARS(1.0, trust_coefficient=0.02, adapt_vectors=True, **o)),
    Case("MARS", lambda **o: suite.MARS(0.05, **o)),
    Case("Momentum", lambda **o: suite.Momentum(0.003, **o)),
    Case("Nesterov", lambda **o: suite.SGD(0.003, 0.9, nesterov=True, **o)),
    Case("RAdam", lambda **o: suite.RAdam(0.05, **o)),
    Case("SGD", lambda **o: suite.SGD(0.005, **o)),
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
    Case("DAdaptAdam", lambda **o: suite.DAdaptAdam(**{"weight_decay": 0.01, "d0": 1e-3, **o})),
    Case("Lookahead", lambda **o: suite.Lookahead(suite.AdamW(0.05, **{"weight_decay": 0.01, **o}), sync_period=5)),
    Case("Prodigy", lambda **o: suite.Prodigy(**{"weight_decay": 0.01, "d0": 1e-3, **o})),
    Case("Sophia", lambda **o: suite.Sophia(0.02, **{"weight_decay": 0.01, **o})),
    Case("StochasticWeightAveraging", lambda **o: suite.StochasticWeightAveraging(suite.Adam(0.1, **o), 2, 2)),
    Case("SWATS", lambda **o: suite.SWATS(0.05, **o)),
    Case("Muon", lambda **o: suite.Muon(0.05, adam_lr_ratio=1.0, **{"weight_decay": 0.01, **o})),
    # As in their own tests: where a statistic lacks more than one dimension of full rank, no eigenbasis is unique.
    Case("SOAP", lambda **o: suite.SOAP(0.05, precondition_frequency=2, max_precondition_dim=4, **o)),
    Case("Shampoo", lambda **o: suite.Shampoo(0.05, precondition_frequency=2, matrix_epsilon=1e-3, **o)),
]

each = dict(argnames="case", argvalues=CASES, ids=[case.name for case in CASES])
