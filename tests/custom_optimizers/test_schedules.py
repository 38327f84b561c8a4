"""Claims about the schedules: values at points computed by hand, through serialisation and inside an optimizer."""

import json

import jax
import keras
import numpy as np
import optax
import pytest

import custom_optimizers
from custom_optimizers import (
    WSD,
    ExpRange,
    LinearToZero,
    OneCycle,
    Optimizer,
    Triangular,
    Triangular2,
    WarmUp,
    WarmUpCosine,
    join,
)

decays = keras.optimizers.schedules


def values(schedule, steps) -> list[float]:
    return [float(schedule(step)) for step in steps]


def by_optax(schedule, steps) -> list[float]:
    return jax.vmap(schedule)(jax.numpy.asarray(steps)).tolist()


def test_warm_up_rises_in_equal_steps_from_one_part_to_the_rate_and_stays():
    assert values(WarmUp(0.8, 4), range(6)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_warm_up_never_updates_at_zero():
    assert float(WarmUp(0.5, 1000)(0)) == pytest.approx(0.0005)


def test_warm_up_starts_the_schedule_after_it_at_its_own_beginning():
    decay = keras.optimizers.schedules.CosineDecay(1.0, decay_steps=4)
    expected = [0.5, 1.0, *(0.5 * (1 + np.cos(np.pi * t / 4)) for t in range(5)), 0.0]
    assert values(WarmUp(decay, 2), range(8)) == pytest.approx(expected, abs=1e-6)


def test_triangular_goes_from_low_to_high_and_back_again_and_again():
    steps = [0, 1, 2, 4, 6, 8, 10, 12, 16]
    expected = [0.1, 0.3, 0.5, 0.9, 0.5, 0.1, 0.5, 0.9, 0.1]
    assert values(Triangular(0.1, 0.9, 4), steps) == pytest.approx(expected)


def test_triangular_of_half_a_cycle_of_one_alternates():
    assert values(Triangular(0.0, 1.0, 1), range(5)) == pytest.approx([0, 1, 0, 1, 0])


def test_warm_up_composes_with_triangular():
    assert values(WarmUp(Triangular(0.2, 1.0, 2), 2), range(7)) == pytest.approx([0.1, 0.2, 0.2, 0.6, 1.0, 0.6, 0.2])


def test_warm_up_then_cosine_is_optax_with_the_rise_one_update_ahead():
    ours = values(WarmUpCosine(0.8, 5, 25, final=0.2), range(30))
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.8, warmup_steps=5, decay_steps=25, end_value=0.2)
    assert ours[:5] == pytest.approx(by_optax(theirs, range(1, 6)), abs=1e-6)
    assert ours[5:] == pytest.approx(by_optax(theirs, range(5, 30)), abs=1e-6)


def test_warm_up_then_cosine_reaches_the_final_rate_at_total_steps_and_stays():
    assert values(WarmUpCosine(1.0, 2, 6, final=0.5), [0, 1, 2, 4, 6, 7, 100]) == [0.5, 1, 1, 0.75, 0.5, 0.5, 0.5]


def test_warm_up_then_cosine_without_a_warm_up_is_the_cosine_of_keras():
    theirs = decays.CosineDecay(0.3, 20, alpha=0.1)
    assert values(WarmUpCosine(0.3, 0, 20, final=0.03), range(25)) == pytest.approx(values(theirs, range(25)), abs=1e-6)


def test_linear_to_zero_is_optax_and_makes_its_last_update_above_zero():
    ours = values(LinearToZero(0.3, 7), range(10))
    assert ours == pytest.approx(by_optax(optax.linear_schedule(0.3, 0.0, 7), range(10)), abs=1e-6)
    assert ours[6] == pytest.approx(0.3 / 7)
    assert ours[7:] == [0, 0, 0]


def test_wsd_rises_stays_and_falls_in_a_line():
    expected = [0.4, 0.8, 0.8, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0]
    assert values(WSD(0.8, 2, 3, 4), range(11)) == pytest.approx(expected)


def test_wsd_falls_by_the_root_of_its_progress():
    expected = [1.0, 1.0, 1.0, *(0.2 + 0.8 * (1 - (u / 4) ** 0.5) for u in range(1, 5)), 0.2]
    assert values(WSD(1.0, 0, 2, 4, final=0.2, decay="1-sqrt"), range(8)) == pytest.approx(expected)


@pytest.mark.parametrize("updates", [10, 11, 101])
@pytest.mark.parametrize("rise", [0.25, 0.3, 0.5])
def test_one_cycle_is_optax_with_one_transition_less_than_updates(updates, rise):
    theirs = optax.cosine_onecycle_schedule(updates - 1, 0.7, pct_start=rise, div_factor=10.0, final_div_factor=100.0)
    ours = OneCycle(0.7, updates, rise=rise, div_factor=10.0, final_div_factor=100.0)
    assert values(ours, range(updates + 3)) == pytest.approx(by_optax(theirs, range(updates + 3)), abs=1e-6)


def test_one_cycle_in_lines_is_computed_by_hand():
    schedule = OneCycle(1.0, 10, rise=1 / 3, div_factor=4.0, final_div_factor=2.0, anneal="linear")
    expected = [0.25, 0.5, 0.75, 1.0, *(1 - 0.875 * k / 6 for k in range(1, 7)), 0.125]
    assert values(schedule, range(11)) == pytest.approx(expected)


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize("updates", [2, 3, 10, 1000])
def test_one_cycle_makes_its_last_update_at_exactly_the_final_rate_and_not_the_one_before(anneal, updates):
    schedule = OneCycle(0.3, updates, anneal=anneal)
    final = float(np.float32(0.3 / 25.0 / 1e4))
    assert float(schedule(updates - 1)) == final
    assert float(schedule(updates - 2)) > final


def test_one_cycle_peaks_where_torch_does_when_the_rise_is_a_whole_number_of_updates():
    rates = values(OneCycle(1.0, 100, rise=0.3), range(100))
    assert np.argmax(rates) == 29  # rise * total_steps - 1
    assert rates[29] == 1.0


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
def test_momentum_of_one_cycle_goes_against_the_rate_and_ends_where_it_began(anneal):
    rate = OneCycle(1.0, 20, anneal=anneal, div_factor=10.0, final_div_factor=1.0)
    heights = (np.asarray(values(rate, range(20))) - 0.1) / 0.9  # 0 at both ends, 1 at the peak
    expected = 0.95 - 0.1 * heights
    assert values(rate.momentum(), range(20)) == pytest.approx(expected.tolist(), abs=1e-6)


def test_triangular2_halves_its_height_after_every_cycle():
    steps = [0, 4, 8, 12, 16, 20, 24]
    assert values(Triangular2(0.1, 0.9, 4), steps) == pytest.approx([0.1, 0.9, 0.1, 0.5, 0.1, 0.3, 0.1])


def test_exp_range_shrinks_its_height_at_every_update_not_every_cycle():
    steps = range(13)
    heights = np.asarray(values(Triangular(0.0, 0.8, 3), steps))
    expected = 0.1 + heights * 0.9 ** np.arange(13)
    assert values(ExpRange(0.1, 0.9, 3, gamma=0.9), steps) == pytest.approx(expected.tolist(), rel=1e-5)


def test_exp_range_keeps_its_precision_after_many_updates():
    assert float(ExpRange(0.0, 1.0, 50_000, gamma=0.99994)(50_000)) == pytest.approx(0.99994**50_000, rel=1e-5)


def test_joined_schedules_are_those_of_optax_each_from_its_own_beginning():
    ours = join([LinearToZero(0.4, 9), Triangular(0.1, 0.3, 2), 0.05], [6, 12])
    theirs = optax.join_schedules(
        [optax.linear_schedule(0.4, 0.0, 9), lambda t: 0.1 + 0.2 * abs((t + 2) % 4 - 2) / 2, lambda t: 0.05], [6, 12]
    )
    assert values(ours, range(16)) == pytest.approx(by_optax(theirs, range(16)), abs=1e-6)


def test_joined_schedules_may_be_undefined_before_their_beginning():
    schedule = join([0.5, decays.CosineDecayRestarts(1.0, 4), decays.PolynomialDecay(1.0, 4, 0.0, power=0.5)], [9, 15])
    assert values(schedule, [0, 8, 9]) == pytest.approx([0.5, 0.5, 1.0])
    assert values(schedule, [15, 18, 19]) == pytest.approx([1.0, 0.5, 0.0])
    assert np.isfinite(values(schedule, range(30))).all()


WRONG = [
    (lambda: WarmUp(0.1, 0), "steps must be a whole number of 1 or above, got 0"),
    (lambda: WarmUp(0.1, -3), "steps must be a whole number of 1 or above, got -3"),
    (lambda: WarmUp(-0.1, 3), "after must be a number of 0 or above, got -0.1"),
    (lambda: WarmUp(lambda step: 0.1, 3), "after must be a rate or a LearningRateSchedule"),
    (lambda: WarmUpCosine(float("nan"), 1, 9), "peak must be a number of 0 or above, got nan"),
    (lambda: WarmUpCosine(0.1, 9, 9), "total_steps must be a whole number of 10 or above, got 9"),
    (lambda: WarmUpCosine(0.1, 0, 9, final=-1), "final must be a number of 0 or above, got -1"),
    (lambda: LinearToZero(0.1, 2.5), "total_steps must be a whole number of 1 or above, got 2.5"),
    (lambda: WSD(0.1, -1, 2, 3), "warmup_steps must be a whole number of 0 or above, got -1"),
    (lambda: WSD(0.1, 1, -2, 3), "stable_steps must be a whole number of 0 or above, got -2"),
    (lambda: WSD(0.1, 1, 2, 0), "decay_steps must be a whole number of 1 or above, got 0"),
    (lambda: WSD(0.1, 1, 2, 3, decay="sqrt"), "decay must be one of linear, 1-sqrt, got 'sqrt'"),
    (lambda: Triangular(0, 1, 0), "half_cycle must be a whole number of 1 or above, got 0"),
    (lambda: Triangular(-1, 1, 4), "low must be a number of 0 or above, got -1"),
    (lambda: ExpRange(0, 1, 4, gamma=0), "gamma must be a number above 0, got 0"),
    (lambda: ExpRange(0, 1, 4, gamma=1.1), r"gamma must be in \[0, 1\], got 1.1"),
    (lambda: OneCycle(1, 1), "total_steps must be a whole number of 2 or above, got 1"),
    (lambda: OneCycle(1, 9, rise=1), r"rise must be in \[0, 1\), got 1"),
    (lambda: OneCycle(1, 9, div_factor=0), "div_factor must be a number above 0, got 0"),
    (lambda: OneCycle(1, 9, anneal="cos"), "anneal must be one of cosine, linear, got 'cos'"),
    (lambda: OneCycle(1, 9).momentum(high=1), r"high must be in \[0, 1\), got 1"),
    (lambda: join([0.1, 0.2], [0]), r"boundaries\[0\] must be a whole number of 1 or above, got 0"),
    (lambda: join([0.1, 0.2, 0.3], [5, 5]), r"boundaries must rise, got \[5, 5\]"),
    (lambda: join([0.1], [5]), "one fewer than schedules, got 1 schedules and 1 boundaries"),
    (lambda: join([0.1, "x"], [5]), r"schedules\[1\] must be a number of 0 or above, got 'x'"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message for _, message in WRONG])
def test_an_argument_out_of_range_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SCHEDULES = {
    "warm-up to a number": WarmUp(0.3, 5),
    "warm-up to Keras' cosine": WarmUp(keras.optimizers.schedules.CosineDecay(0.3, 20, alpha=0.1), 5),
    "warm-up to triangular": WarmUp(Triangular(0.1, 0.3, 4), 5),
    "triangular": Triangular(0.1, 0.3, 4),
    "triangular, halving": Triangular2(0.1, 0.3, 4),
    "triangular, shrinking": ExpRange(0.1, 0.3, 4, gamma=0.95),
    "warm-up and cosine": WarmUpCosine(0.3, 5, 20, final=0.01),
    "linear to zero": LinearToZero(0.3, 10),
    "warm-up to linear": WarmUp(LinearToZero(0.3, 10), 5),
    "wsd": WSD(0.3, 3, 4, 5, final=0.01, decay="1-sqrt"),
    "one cycle": OneCycle(0.3, 12, rise=0.4, div_factor=5.0, final_div_factor=7.0, anneal="linear"),
    "momentum of one cycle": OneCycle(0.3, 12, rise=0.4).momentum(0.1, 0.9),
    "joined": join([WarmUp(0.2, 3), decays.ExponentialDecay(0.2, 4, 0.5), Triangular(0.1, 0.3, 4), 0.05], [4, 9, 15]),
    "joined within joined": join([join([0.1, LinearToZero(0.3, 4)], [2]), WSD(0.1, 1, 2, 3)], [6]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_comes_back_from_json_with_the_same_values(name):
    schedule = SCHEDULES[name]
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(schedule))))
    assert type(again) is type(schedule)
    assert values(again, range(40)) == values(schedule, range(40))


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_optimizer_with_a_schedule_comes_back_from_its_config(name):
    optimizer = keras.optimizers.Adam(SCHEDULES[name])
    again = keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(optimizer))))
    assert float(again.learning_rate) == pytest.approx(float(optimizer.learning_rate))


@pytest.mark.parametrize("name", SCHEDULES)
def test_plain_descent_moves_by_the_scheduled_rate_at_every_update(name):
    schedule, w = SCHEDULES[name], keras.Variable([0.0])
    optimizer = keras.optimizers.SGD(schedule)
    moved = []
    for _ in range(12):
        before = float(w[0])
        optimizer.apply([keras.ops.ones([1])], [w])
        moved.append(before - float(w[0]))
    assert moved == pytest.approx(values(schedule, range(12)), abs=1e-6)


class Descent(Optimizer):
    """w -= rate * g."""

    def update(self, gradient, weight, slots, step):
        return -step.rate * gradient, {}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_counts_updates_where_gradients_are_accumulated(name):
    schedule, w = SCHEDULES[name], keras.Variable([0.0])
    optimizer = Descent(schedule, gradient_accumulation_steps=3)
    moved = []
    for _ in range(12):
        before = float(w[0])
        optimizer.apply([keras.ops.ones([1])], [w])
        moved.append(before - float(w[0]))
    expected = [rate for t in range(4) for rate in (0.0, 0.0, float(schedule(t)))]
    assert moved == pytest.approx(expected, abs=1e-6)


def test_every_public_schedule_is_in_this_table_of_what_can_be_saved():
    classes = [each for each in vars(custom_optimizers).values() if isinstance(each, type)]
    public = {each for each in classes if issubclass(each, decays.LearningRateSchedule)}
    assert {type(schedule) for schedule in SCHEDULES.values()} == public


def test_a_schedule_gives_the_same_values_inside_a_compiled_function():
    import tensorflow as tf

    for schedule in SCHEDULES.values():
        compiled = tf.function(schedule.__call__)
        steps = range(0, 30, 3)
        rates = [float(compiled(tf.constant(step, tf.int64))) for step in steps]
        assert rates == pytest.approx(values(schedule, steps), abs=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_may_be_a_tensor_of_many(name):
    steps = np.arange(24).reshape(4, 6)
    rates = np.asarray(SCHEDULES[name](steps))
    assert rates.dtype == np.float32
    assert rates.ravel().tolist() == pytest.approx(values(SCHEDULES[name], range(24)), abs=1e-7)


def test_steps_after_the_rise_may_be_a_tensor_of_many():
    steps = np.arange(6)
    assert np.asarray(WarmUp(0.8, 4)(steps)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
