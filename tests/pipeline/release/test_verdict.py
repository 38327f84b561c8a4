"""The judge of a canary: seldom wrong about an equal one, quick about a bad one, whatever the number of looks."""

import math
from collections import Counter

import numpy as np
import pytest

from pipeline.release.traffic import Traffic
from pipeline.release.verdict import Limits, at_least, at_most, due, fisher, judge, newcombe, wilson

BOUNDS = (*(10 * 1.8**i for i in range(33)), math.inf)


LIMITS = Limits()


def traffic(
    random, requests: int, errors: float = 0.0, slower: float = 1.0, shift: float = 0.0, nan: float = 0.0, rows=4
):
    """Log-normal latencies around 2 ms, `rows` scores a request that share half of their variance."""
    failed = int(random.binomial(requests, errors))
    took = 2000 * slower * np.exp(0.4 * random.normal(size=requests))
    good = requests - failed
    values = shift + random.normal(size=(good, 1)) * 0.5**0.5 + random.normal(size=(good, rows)) * 0.5**0.5
    bad = random.random(values.shape) < nan
    kept = values[~bad]
    moments = {"count": kept.size, "sum": kept.sum(), "sum_squares": (kept**2).sum(), "not_finite": int(bad.sum())}
    return Traffic(
        Counter({"OK": good, "INTERNAL": failed}),
        Counter({bound: int((took <= bound).sum()) for bound in BOUNDS}),
        Counter({("score", name): float(value) for name, value in moments.items()}),
    )


def classes(random, requests: int, shares=(0.1,) * 10, collapsed: float = 0.0, sharpness: float = 6.0):
    """A softmax over classes that come as often as `shares` say; `collapsed` of the answers are class 3, whatever the
    request."""
    good = traffic(random, requests)
    right = random.choice(len(shares), requests, p=shares)
    right[random.random(requests) < collapsed] = 3
    scores = np.exp(random.normal(size=(requests, len(shares))) + sharpness * np.eye(len(shares))[right])
    scores /= scores.sum(axis=1, keepdims=True)
    outputs = Counter()
    for name, values in [("scores", scores), *((f"scores[{i}]", scores[:, i]) for i in range(len(shares)))]:
        outputs |= {(name, "count"): values.size, (name, "sum"): values.sum(), (name, "sum_squares"): (values**2).sum()}
    return Traffic(good.requests, good.latency, Counter(outputs))


def trial(
    seed: int, share: float = 0.2, most: int = 5000, limits: Limits = LIMITS, asked=traffic, common=None, **canary
) -> tuple[str, int, str]:
    """A whole trial: decision, requests that the canary had answered, why."""
    random = np.random.default_rng(seed)
    stable, tried, look = Traffic(), Traffic(), 1
    while due(look) <= most:
        new = due(look) - tried.total
        tried += asked(random, new, **(common or {}), **canary)
        stable += asked(random, int(new / share * (1 - share)), **(common or {}))
        verdict = judge(stable, tried, look, limits)
        if verdict.decision != "wait":
            return verdict.decision, tried.total, verdict.why
        look += 1
    return "wait", tried.total, verdict.why


def test_an_equal_canary_is_rolled_back_less_often_than_the_confidence_allows_and_else_promoted():
    found = Counter(trial(seed)[0] for seed in range(300))
    assert found["roll back"] <= 0.05 * 300
    assert found["promote"] >= 0.93 * 300


RARE = {"shares": (0.6, 0.3, 0.05, 0.02, 0.01, 0.01, 0.005, 0.003, 0.001, 0.001)}


@pytest.mark.parametrize("common", [{}, RARE], ids=["even", "rare"])
@pytest.mark.parametrize(("share", "promoted"), [(0.2, 0.93), (0.5, 0.93), (0.9, 0)])
def test_an_equal_canary_of_ten_classes_is_seldom_rolled_back_and_else_promoted(share, promoted, common):
    """Of 90% the stable version answers too little for a promotion within 5000 requests."""
    trials = [trial(seed, share, asked=classes, common=common) for seed in range(60)]
    found = Counter(decision for decision, _, _ in trials)
    assert found["roll back"] <= 0.05 * 60
    assert found["promote"] >= promoted * 60
    assert share > 0.2 or np.median([asked for _, asked, _ in trials]) <= 1200


def test_a_canary_that_collapses_onto_one_class_is_rolled_back_within_so_many_requests_and_the_class_is_named():
    found = [trial(seed, asked=classes, collapsed=1.0) for seed in range(40)]
    assert {decision for decision, _, _ in found} == {"roll back"}
    assert np.quantile([count for _, count, _ in found], 0.9) <= 30
    assert all("output scores[3] moved by" in why for _, _, why in found)
    assert max(why.count("moved by") for _, _, why in found) <= 3


def test_a_canary_that_answers_one_class_too_often_is_rolled_back_within_so_many_requests():
    found = [trial(seed, asked=classes, collapsed=0.25) for seed in range(40)]
    assert {decision for decision, _, _ in found} == {"roll back"}
    assert np.quantile([count for _, count, _ in found], 0.9) <= 350


def test_a_class_that_hardly_occurs_may_move_by_ten_times_of_next_to_nothing():
    def answers(rare: float) -> Traffic:
        outputs: Counter = Counter()
        for name, values in {"s": [0.9, 0.1 - rare, rare], "s[0]": [0.9], "s[1]": [0.1 - rare], "s[2]": [rare]}.items():
            moments = {"count": len(values), "sum": sum(values), "sum_squares": sum(v * v for v in values)}
            outputs.update({(name, moment): 5000 * value for moment, value in moments.items()})
        return Traffic(Counter(OK=5000), requests(5000).latency, outputs)

    assert judge(answers(1e-4), answers(1e-3)).decision == "promote"
    assert "output s[2] moved by" in judge(answers(1e-4), answers(0.05)).why


def test_a_column_that_the_canary_has_not_is_not_waited_for():
    random = np.random.default_rng(0)
    stable, canary = (classes(random, 3000, (1 / n,) * n) for n in (4, 3))
    assert "not answered" not in judge(stable, canary).why


def test_an_equal_canary_of_few_guarantees_is_still_seldom_rolled_back_over_many_looks():
    never = Limits(min_requests=10**9, confidence=0.8)  # so that every look is taken
    found = Counter(trial(seed, most=3000, limits=never)[0] for seed in range(200))
    assert found["promote"] == 0
    assert found["roll back"] <= 0.2 * 200


@pytest.mark.parametrize(
    ("canary", "requests", "named"),
    [
        ({"errors": 0.2}, 45, "failed, at the stable version 0 of"),
        ({"errors": 0.05}, 350, "failed, at the stable version 0 of"),
        ({"shift": 1.0}, 150, "output score moved by"),
        ({"shift": -1.0}, 150, "output score moved by"),
        ({"slower": 8.0}, 70, "latency (quantile 0.5) is surely more than 2 times"),
        ({"nan": 0.3}, 70, "output score is NaN or infinite"),
    ],
)
def test_a_bad_canary_is_rolled_back_within_so_many_requests_and_for_the_right_reason(canary, requests, named):
    found = [trial(seed, **canary) for seed in range(40)]
    assert {decision for decision, _, _ in found} == {"roll back"}
    assert np.quantile([count for _, count, _ in found], 0.9) <= requests
    assert sum(named in why for _, _, why in found) >= 36


@pytest.mark.parametrize("canary", [{"errors": 0.04}, {"shift": 0.4}, {"slower": 4.0}])
def test_a_canary_that_is_worse_than_the_limits_is_promoted_less_often_than_the_confidence_allows(canary):
    assert sum(trial(seed, **canary)[0] == "promote" for seed in range(60)) <= 3


def test_errors_that_both_versions_answer_are_no_fault_of_the_canary():
    random = np.random.default_rng(0)
    stable, canary = (traffic(random, n, errors=0.2) for n in (4000, 1000))
    assert "failed" not in judge(stable, canary, 5).why


def test_many_values_of_one_request_count_once():
    """Ten requests of a thousand values each, all shifted by the one thing that they share."""
    random = np.random.default_rng(1)
    one = Counter({("score", "count"): 10_000, ("score", "sum"): 6000.0, ("score", "sum_squares"): 13_600.0})
    ten = Traffic(Counter(OK=10), Counter({math.inf: 10}), one)
    assert judge(traffic(random, 1000), ten).decision == "wait"


def requests(ok: int, failed: int = 0) -> Traffic:
    return Traffic(Counter(OK=ok, INTERNAL=failed), Counter({1000.0: ok + failed, math.inf: ok + failed}))


TABLE = {
    "nothing yet": (requests(0), requests(0), "wait"),
    "no canary requests": (requests(5000), requests(0), "wait"),
    "no stable requests": (requests(0), requests(5000), "wait"),
    "both without an error": (requests(5000), requests(2000), "promote"),
    "too few": (requests(5000), requests(299), "wait"),
    "every request fails": (requests(5000), requests(0, 20), "roll back"),
    "fewer errors than before": (requests(4000, 1000), requests(2000, 0), "promote"),
    "one error of few": (requests(80), requests(19, 1), "wait"),
}


@pytest.mark.parametrize(("stable", "canary", "decision"), TABLE.values(), ids=TABLE)
def test_the_table_of_plain_cases(stable, canary, decision):
    verdict = judge(stable, canary)
    assert verdict.decision == decision
    assert "\n" not in verdict.why


def test_the_verdict_says_what_is_missing():
    assert judge(requests(5000), requests(150)).why == (
        "after 150 requests: 150 of 300 requests; the error rate may have grown by 0.040"
    )


def test_an_output_that_the_canary_does_not_answer_is_waited_for():
    random = np.random.default_rng(0)
    tried = traffic(random, 2000)
    tried.outputs.clear()
    assert "output score was not answered yet" in judge(traffic(random, 2000), tried).why


def test_an_output_that_never_varied_and_moves_is_seen():
    def constant(value: float) -> Traffic:
        moments = {"count": 500, "sum": 500 * value, "sum_squares": 500 * value**2}
        return Traffic(Counter(OK=500), Counter({math.inf: 500}), Counter({("y", k): v for k, v in moments.items()}))

    assert judge(constant(3.0), constant(3.1)).decision == "roll back"
    assert "moved" not in judge(constant(3.0), constant(3.0)).why


def test_later_looks_need_more_proof():
    stable, canary = requests(80), requests(17, 3)
    assert judge(stable, canary, 1).decision == "wait"
    proven = requests(16, 4)
    assert [judge(stable, proven, look).decision for look in (1, 10)] == ["roll back", "wait"]


def test_the_error_probabilities_of_all_looks_stay_below_what_was_asked_for():
    assert sum(1 / (look * (look + 1)) for look in range(1, 10_000)) < 1


def test_the_tails_agree_with_sums_by_hand():
    assert at_least(2, 3, 0.5) == pytest.approx(0.5)
    assert at_most(0, 10, 0.1) == pytest.approx(0.9**10)
    assert at_least(0, 7, 0.3) == pytest.approx(1)
    assert at_most(999_000, 1_000_000, 0.999) == pytest.approx(0.5, abs=0.02)
    assert fisher(3, 3, 0, 3) == pytest.approx(1 / 20)
    assert fisher(1, 2, 1, 2) == pytest.approx(5 / 6)
    assert fisher(0, 5, 5, 5) == 1


def test_the_intervals_agree_with_published_ones():
    # 81 of 263 by Wilson, and 56/70 - 48/80 by Newcombe's method 10: Statistics in Medicine 17 (1998)
    assert wilson(81, 263, 1.959964) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert newcombe(56, 70, 48, 80, 0.025) == pytest.approx(0.3339, abs=1e-4)
    assert newcombe(0, 0, 0, 5, 0.05) == 1
