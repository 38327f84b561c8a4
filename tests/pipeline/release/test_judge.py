"""The rules of the gate on evaluations written by hand: a refusal names metric, slice, old, new and threshold."""

import dataclasses
import json

import pytest

from pipeline.config import Gate
from pipeline.release.evaluate import Evaluation
from pipeline.release.gate import judge

LIVE = Evaluation(
    examples=1000,
    metrics={"accuracy": 0.9, "loss": 0.3, "ndcg@10": 0.5},
    intervals={"accuracy": (0.88, 0.92)},
    slices={
        "label=cat": {"examples": 500, "accuracy": 0.9},
        "label=dog": {"examples": 450, "accuracy": 0.9},
        "label=emu": {"examples": 49, "accuracy": 0.9},
        "label=gnu": {"examples": 0},
    },
    seconds={"serving_default": 0.010},
    users=60,
    confusion={"cat": {"cat": 9, "dog": 1}, "dog": {"dog": 9, "cat": 1}},
)


def better(**changes) -> Evaluation:
    """The live model's evaluation with other values; of `metrics` and `slices` only what is given changes."""
    metrics = {**LIVE.metrics, **changes.pop("metrics", {})}
    slices = {**LIVE.slices, **changes.pop("slices", {})}
    return dataclasses.replace(LIVE, metrics=metrics, slices=slices, **changes)


def only(decision):
    assert not decision.accepted
    assert len(decision.reasons) == 1, decision.text
    assert "\n" not in decision.text
    return decision.reasons[0]


def test_a_model_equal_to_the_live_one_is_accepted_with_no_tolerance_at_all():
    gate = Gate(at_least={"accuracy": 0.9}, at_most={"loss": 0.3}, tolerance={"accuracy": 0, "loss": 0, "ndcg@10": 0})
    decision = judge(LIVE, LIVE, gate)
    assert decision.accepted
    assert decision.reasons == ()
    assert len(decision.passed) == 7  # the number of rows and the latency were checked as well


def test_a_value_below_its_threshold_is_refused_with_its_interval():
    reason = only(judge(LIVE, None, Gate(at_least={"accuracy": 0.95})))
    assert (reason.metric, reason.slice, reason.old, reason.new, reason.threshold) == (
        "accuracy",
        "all",
        None,
        0.9,
        0.95,
    )
    assert reason.text == (
        "accuracy, slice all (1000 rows): live none, candidate 0.9000 (95% interval 0.8800 to 0.9200), "
        "lowest allowed 0.9500."
    )


def test_an_interval_never_excuses_but_is_told_to_hold_the_threshold():
    reason = only(judge(LIVE, None, Gate(at_least={"accuracy": 0.91})))
    assert "(95% interval 0.8800 to 0.9200, threshold inside)" in reason.text


def test_a_value_above_its_ceiling_is_refused():
    reason = only(judge(LIVE, None, Gate(at_most={"loss": 0.2})))
    assert "candidate 0.3000, highest allowed 0.2000" in reason.text


@pytest.mark.parametrize("bounds", [{"at_least": {"auc": 0.5}}, {"at_most": {"rmse": 9.0}}, {"tolerance": {"f1": 0.1}}])
def test_a_metric_that_was_not_measured_is_no_pass(bounds):
    reason = only(judge(LIVE, LIVE, Gate(**bounds)))
    assert "candidate not measured" in reason.text


def test_worse_than_the_live_model_by_more_than_the_tolerance_is_refused_by_all_five_names():
    reason = only(judge(better(metrics={"accuracy": 0.85}), LIVE, Gate(tolerance={"accuracy": 0.04})))
    assert (reason.metric, reason.slice, reason.old, reason.new) == ("accuracy", "all", 0.9, 0.85)
    assert reason.threshold == pytest.approx(0.86)
    assert "accuracy, slice all (1000 rows): live 0.9000, candidate 0.8500" in reason.text
    assert "lowest allowed 0.8600" in reason.text


def test_worse_by_exactly_the_tolerance_is_accepted():
    assert judge(better(metrics={"accuracy": 0.6}), LIVE, Gate(tolerance={"accuracy": 0.3})).accepted


def test_of_a_loss_more_is_worse_and_of_a_ranking_less_is():
    gate = Gate(tolerance={"loss": 0.01, "ndcg@10": 0.01})
    assert judge(better(metrics={"loss": 0.1, "ndcg@10": 0.9}), LIVE, gate).accepted
    assert only(judge(better(metrics={"loss": 0.32}), LIVE, gate)).metric == "loss"
    reason = only(judge(better(metrics={"ndcg@10": 0.4}), LIVE, gate))
    assert "ndcg@10, slice all (60 users): live 0.5000, candidate 0.4000, lowest allowed 0.4900." in reason.text


def test_a_model_that_is_good_overall_and_bad_on_one_slice_is_refused_for_that_slice():
    worse = better(metrics={"accuracy": 0.95}, slices={"label=dog": {"examples": 450, "accuracy": 0.6}})
    reason = only(judge(worse, LIVE, Gate(tolerance={"accuracy": 0.0}, slice_tolerance={"accuracy": 0.05})))
    assert (reason.metric, reason.slice, reason.old, reason.new) == ("accuracy", "label=dog", 0.9, 0.6)
    assert "slice label=dog (450 rows): live 0.9000, candidate 0.6000, lowest allowed 0.8500" in reason.text


def test_slices_that_are_too_small_are_told_as_not_judged():
    worse = better(slices={"label=emu": {"examples": 49, "accuracy": 0.0}})
    decision = judge(worse, LIVE, Gate(slice_tolerance={"accuracy": 0.05}))
    assert decision.accepted
    assert decision.not_judged == (
        "accuracy, slice label=emu: not judged, 49 rows of at least 50.",
        "accuracy, slice label=gnu: not judged, 0 rows of at least 50.",
    )


def test_a_metric_that_no_slice_was_large_enough_for_is_no_pass():
    gate = Gate(slice_tolerance={"accuracy": 0.05}, min_slice_examples=501)
    assert only(judge(LIVE, LIVE, gate)).text.startswith("accuracy: not measured on any slice of 501 rows")


def test_a_slice_that_only_the_live_model_was_measured_on_is_no_pass():
    lost = better(slices={"label=dog": {"examples": 450}})
    assert "candidate not measured" in only(judge(lost, LIVE, Gate(slice_tolerance={"accuracy": 0.05}))).text


def test_a_slice_can_have_a_threshold_of_its_own():
    gate = Gate(at_least={"accuracy[label=dog]": 0.95})
    reason = only(judge(LIVE, None, gate))
    assert (reason.metric, reason.slice, reason.new, reason.threshold) == ("accuracy", "label=dog", 0.9, 0.95)


@pytest.mark.parametrize("part", ["label=gnu", "label=emu", "label=typo"])
def test_an_empty_or_small_or_unknown_slice_is_no_pass(part):
    reason = only(judge(LIVE, None, Gate(at_least={f"accuracy[{part}]": 0.1})))
    assert reason.slice == part
    assert "candidate not measured on 50 rows" in reason.text


def test_too_few_rows_are_no_evidence():
    reason = only(judge(dataclasses.replace(LIVE, examples=99), None, Gate(at_least={"accuracy": 0.5})))
    assert (reason.metric, reason.new, reason.threshold) == ("examples", 99, 100)


def test_one_answer_for_every_row_is_refused_as_prediction_collapse_without_any_threshold():
    collapsed = better(confusion={"cat": {"cat": 500}, "dog": {"cat": 450}})
    assert only(judge(collapsed, None, Gate())).text.startswith("prediction collapse: 'cat' for all 1000 rows")


def test_one_answer_is_right_where_the_rows_have_one_class():
    assert judge(better(confusion={"cat": {"cat": 1000}}), None, Gate()).accepted


def test_classes_that_answer_for_each_other_are_refused_as_shifted_labels_without_any_threshold():
    shifted = better(confusion={"a": {"b": 90, "a": 10}, "b": {"c": 90}, "c": {"a": 80, "c": 10}})
    text = only(judge(shifted, None, Gate())).text
    assert text == "labels shifted: 'a' is answered 'b', 'b' is answered 'c', 'c' is answered 'a'."


def test_a_weak_model_whose_answers_are_mostly_wrong_is_not_called_shifted():
    assert judge(better(confusion={"a": {"b": 35, "a": 33}, "b": {"a": 36, "b": 34}}), None, Gate()).accepted


def test_a_batch_that_takes_ten_times_as_long_is_refused():
    reason = only(judge(better(seconds={"serving_default": 0.1}), LIVE, Gate(max_latency_ratio=3.0)))
    assert reason.text == (
        "latency of serving_default, slice all: live 10 ms a batch, candidate 100 ms, highest allowed 30 ms (3 times)."
    )


def test_a_candidate_that_cannot_be_served_is_refused_for_that_alone():
    broken = Evaluation(examples=1000, problems=("scores are not finite for 3 of 1000 rows",))
    reason = only(judge(broken, LIVE, Gate(at_least={"accuracy": 0.5}, tolerance={"accuracy": 0.1})))
    assert reason.text == "The candidate cannot be served: scores are not finite for 3 of 1000 rows."


def test_without_a_live_model_only_absolute_thresholds_count():
    gate = Gate(at_least={"accuracy": 0.9}, tolerance={"accuracy": 0.0}, slice_tolerance={"auc": 0.0})
    decision = judge(LIVE, None, gate)
    assert decision.accepted
    assert [reason.metric for reason in decision.passed] == ["examples", "accuracy"]


def test_a_live_model_that_cannot_be_compared_refuses_even_a_perfect_candidate():
    assert only(judge(better(metrics={"accuracy": 1.0}), None, Gate(), "champion: cannot be read")).metric == "champion"


def test_a_decision_is_plain_json():
    decision = judge(LIVE, LIVE, Gate(at_least={"accuracy": 0.95}, slice_tolerance={"accuracy": 0.1}))
    values = json.loads(json.dumps(decision.to_json(), allow_nan=False))
    assert values["accepted"] is False
    assert values["reasons"][0]["metric"] == "accuracy"
    assert len(values["not_judged"]) == 2
