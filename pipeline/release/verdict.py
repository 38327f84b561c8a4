"""Is the canary as good as the stable version, worse, or is it too early to tell?

Each of these is a statement with a bound on how often it is wrong, and one that is proven is enough to roll back:

    errors      the canary fails more often                 Fisher's exact test of two proportions
    latency     a quantile of its latency is more than      exact binomial bounds on the share of requests below a
                `max_latency_ratio` times the stable one's  bucket's bound; no shape is assumed
    outputs     the mean of a float output, or of one of    normal bound. A request counts as one observation however
                its columns, moved by more than             many values it has, since these are not independent
                `max_shift` of its standard deviations
    not finite  it answers NaN or infinity more often       Fisher's exact test

It is promoted when it has `min_requests`, when Newcombe's bound on the increase of the error rate is below
`max_error_increase`, every output's mean surely moved less than `max_shift`, and no quantile was measured above the
ratio. Until then: wait.

Repeated looks. Look k may be wrong with probability alpha / (k (k + 1)), shared evenly among its statements; all looks
together stay below alpha = 1 - `confidence`, however long it goes on, by the union bound. The looks come when the
canary's requests have grown by half (`due`), so that a long trial costs few of them.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from pipeline.release.traffic import Traffic, quantile

QUANTILES = (0.5, 0.95)
FIRST, GROWTH = 20, 1.5
NAMED = 3
"""Outputs that moved which are named in one line, the farthest first."""
COLUMN_UNIT = 0.25
"""Least unit of a column's move, in standard deviations of the whole output: a class that hardly occurs has a score
near 0 that hardly varies, and ten times that is still near 0."""


@dataclass(frozen=True)
class Limits:
    min_requests: int = 300
    max_error_increase: float = 0.02
    max_latency_ratio: float = 2.0
    max_shift: float = 0.25
    confidence: float = 0.95


@dataclass(frozen=True)
class Verdict:
    decision: Literal["promote", "roll back", "wait"]
    why: str
    """The statements that were proven, or what is missing, in one line."""


def due(look: int) -> int:
    """Requests that the canary must have answered for look 1, 2, ..."""
    return math.ceil(FIRST * GROWTH ** (look - 1))


def judge(stable: Traffic, canary: Traffic, look: int = 1, limits: Limits = Limits()) -> Verdict:
    """The verdict on what both versions were asked since the trial began, at look number `look`."""
    names = sorted({name for name, _ in stable.outputs} & {name for name, _ in canary.outputs})
    alpha = (1 - limits.confidence) / (look * (look + 1)) / (2 + len(QUANTILES) + len(names))
    worse = [*_errors(stable, canary, alpha), *_latency(stable, canary, alpha, limits)]
    worse += _not_finite(stable, canary, [name for name in names if not _whole(name)], alpha)
    shifts = sorted(((*_shift(stable, canary, name, alpha), name) for name in names), reverse=True)
    surely = [shift for shift in shifts if shift[0] - shift[1] > limits.max_shift]
    worse += [
        f"output {name} moved by {moved:.2f} standard deviations, surely more than {limits.max_shift:g} (mean "
        f"{_mean(stable, name):.4g} to {_mean(canary, name):.4g})"
        for moved, _, name in surely[:NAMED]
    ]
    if worse:
        return Verdict("roll back", f"after {canary.total} requests: {'; '.join(worse)}")
    missing = list(_missing(stable, canary, alpha, limits))
    unsure = [shift for shift in shifts if shift[0] + shift[1] > limits.max_shift]
    missing += [
        f"output {name} moved by {moved:.2f} +- {bound:.2f} standard deviations"
        for moved, bound, name in unsure[:NAMED]
    ]
    if missing:
        return Verdict("wait", f"after {canary.total} requests: {'; '.join(missing)}")
    return Verdict(
        "promote",
        f"after {canary.total} requests: {canary.errors} errors beside {stable.errors} of {stable.total}, latency "
        f"{_ratio(stable, canary, 0.5):.2f} times (median) and {_ratio(stable, canary, 0.95):.2f} times (95%), "
        f"{len(names)} outputs alike",
    )


def _missing(stable: Traffic, canary: Traffic, alpha: float, limits: Limits) -> Iterator[str]:
    if canary.total < limits.min_requests:
        yield f"{canary.total} of {limits.min_requests} requests"
    increase = newcombe(canary.errors, canary.total, stable.errors, stable.total, alpha)
    if increase > limits.max_error_increase:
        yield f"the error rate may have grown by {increase:.3f}"
    for share in QUANTILES:
        ratio = _ratio(stable, canary, share)
        if not ratio <= limits.max_latency_ratio:
            yield f"latency (quantile {share:g}) measured at {ratio:.2f} times"
    for name in sorted({n for n, _ in stable.outputs if not _whole(n)} - {n for n, _ in canary.outputs}):
        yield f"output {name} was not answered yet"


def _errors(stable: Traffic, canary: Traffic, alpha: float) -> Iterator[str]:
    if fisher(canary.errors, canary.total, stable.errors, stable.total) <= alpha:
        yield f"{canary.errors} of {canary.total} failed, at the stable version {stable.errors} of {stable.total}"


def _not_finite(stable: Traffic, canary: Traffic, names: list[str], alpha: float) -> Iterator[str]:
    for name in names:
        bad = [traffic.outputs[name, "not_finite"] for traffic in (canary, stable)]
        all_of = [traffic.outputs[name, "count"] + b for traffic, b in zip((canary, stable), bad, strict=True)]
        # values of one request are not independent: at most one observation a request
        ratio = [min(1.0, traffic.total / n) if n else 0.0 for traffic, n in zip((canary, stable), all_of, strict=True)]
        (a, n), (b, m) = ((int(x * r), int(y * r)) for x, y, r in zip(bad, all_of, ratio, strict=True))
        if bad[0] and fisher(a, n, b, m) <= alpha / len(names):
            yield f"output {name} is NaN or infinite in {bad[0]:g} of {all_of[0]:g} values"


def _latency(stable: Traffic, canary: Traffic, alpha: float, limits: Limits) -> Iterator[str]:
    """The stable version's quantile surely lies below `bound`, and the canary's surely above `far`."""
    if not stable.total or not canary.total:
        return
    for share in QUANTILES:
        requests = int(stable.latency[math.inf])
        below = ((b, int(count)) for b, count in sorted(stable.latency.items()) if count > share * requests)
        surely = (b for b, count in below if at_least(count, requests, share) <= alpha / 2)
        bound = next(surely, math.inf)
        far = next((b for b in sorted(canary.latency) if b >= limits.max_latency_ratio * bound), math.inf)
        if far < math.inf and at_most(int(canary.latency[far]), int(canary.latency[math.inf]), share) <= alpha / 2:
            yield (
                f"latency (quantile {share:g}) is surely more than {limits.max_latency_ratio:g} times as long: below "
                f"{bound / 1e3:.3g} ms at the stable version, above {far / 1e3:.3g} ms here"
            )


def _ratio(stable: Traffic, canary: Traffic, share: float) -> float:
    old, new = quantile(stable, share), quantile(canary, share)
    return new / old if old else math.nan


def _whole(name: str) -> str:
    """The output that `name` is a column of; "" for an output."""
    return name.rpartition("[")[0] if name.endswith("]") else ""


def _mean(traffic: Traffic, name: str) -> float:
    count = traffic.outputs[name, "count"]
    return traffic.outputs[name, "sum"] / count if count else math.nan


def _variance(traffic: Traffic, name: str) -> float:
    count = traffic.outputs[name, "count"]
    return max(0.0, traffic.outputs[name, "sum_squares"] / count - _mean(traffic, name) ** 2) if count else 0.0


def _shift(stable: Traffic, canary: Traffic, name: str, alpha: float) -> tuple[float, float]:
    """How far the mean moved, and the half-width of its interval, in standard deviations of the stable version."""
    seen = [min(traffic.outputs[name, "count"], traffic.requests["OK"]) for traffic in (stable, canary)]
    if min(seen) < FIRST:  # a normal bound says nothing of so few
        return 0.0, math.inf
    old, new = _mean(stable, name), _mean(canary, name)
    deviation = math.sqrt(_variance(stable, name))
    if whole := _whole(name):
        deviation = max(deviation, COLUMN_UNIT * math.sqrt(_variance(stable, whole)))
    unit = deviation or 1e-6 * max(abs(old), 1.0)  # of an output that never varied
    # the larger variance stands for both: a rare value may be missing where little was asked
    variance = max(_variance(stable, name), _variance(canary, name))
    error = math.sqrt(variance / seen[0] + variance / seen[1])
    return abs(new - old) / unit, NormalDist().inv_cdf(1 - alpha / 2) * error / unit


def fisher(a: int, n: int, b: int, m: int) -> float:
    """P(at least `a` of the a + b failures fall on the n requests of n + m), if both fail equally often."""
    if not n or not m or not a:
        return 1.0
    k = np.arange(a, min(n, a + b) + 1)
    logs = _choose(n, k) + _choose(m, a + b - k) - _choose(n + m, np.array([a + b]))
    return float(min(1.0, np.exp(logs).sum()))


def newcombe(a: int, n: int, b: int, m: int, alpha: float) -> float:
    """Upper bound of a/n - b/m by the Wilson intervals of both, wrong with probability `alpha`; 1 without requests."""
    if not n or not m:
        return 1.0
    z = NormalDist().inv_cdf(1 - alpha)
    (_, upper), (lower, _) = wilson(a, n, z), wilson(b, m, z)
    return a / n - b / m + math.hypot(upper - a / n, b / m - lower)


def wilson(a: int, n: int, z: float) -> tuple[float, float]:
    """The interval of a proportion a/n, `z` standard errors to each side."""
    middle, width = (a + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(a * (n - a) / n + z * z / 4)
    return max(0.0, middle - width), min(1.0, middle + width)


def at_least(x: int, n: int, share: float) -> float:
    """P(Binomial(n, share) >= x)."""
    return _tail(np.arange(x, n + 1), n, share)


def at_most(x: int, n: int, share: float) -> float:
    """P(Binomial(n, share) <= x)."""
    return _tail(np.arange(0, x + 1), n, share)


def _tail(k: np.ndarray, n: int, share: float) -> float:
    logs = _choose(n, k) + k * math.log(share) + (n - k) * math.log1p(-share)
    return float(min(1.0, np.exp(logs).sum()))


def _choose(n: int, k: np.ndarray) -> np.ndarray:
    """log of n over k, -inf where k is out of range."""
    inside = (k >= 0) & (k <= n)
    safe, logs = np.where(inside, k, 0), _factorials(1 << max(n, 1).bit_length())
    return np.where(inside, logs[n] - logs[safe] - logs[n - safe], -math.inf)


@functools.lru_cache(maxsize=2)
def _factorials(size: int) -> np.ndarray:
    """log(k!) for k below `size`."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size)))])
