"""Claims about the schedules: values at points computed by hand, through serialisation and inside an optimizer."""

import json

import keras
import numpy as np
import pytest

from custom_optimizers import Triangular, WarmUp


def values(schedule, steps) -> list[float]:
    return [float(schedule(step)) for step in steps]


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


@pytest.mark.parametrize(
    "make", [lambda: WarmUp(0.1, 0), lambda: WarmUp(0.1, -3), lambda: Triangular(0, 1, 0), lambda: Triangular(0, 1, -1)]
)
def test_a_length_that_is_not_above_zero_is_refused(make):
    with pytest.raises(ValueError, match="must be above 0"):
        make()


SCHEDULES = {
    "warm-up to a number": WarmUp(0.3, 5),
    "warm-up to Keras' cosine": WarmUp(keras.optimizers.schedules.CosineDecay(0.3, 20, alpha=0.1), 5),
    "warm-up to triangular": WarmUp(Triangular(0.1, 0.3, 4), 5),
    "triangular": Triangular(0.1, 0.3, 4),
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


def test_a_schedule_gives_the_same_values_inside_a_compiled_function():
    import tensorflow as tf

    for schedule in SCHEDULES.values():
        compiled = tf.function(schedule.__call__)
        steps = range(0, 30, 3)
        assert [float(compiled(tf.constant(step, tf.int64))) for step in steps] == pytest.approx(
            values(schedule, steps)
        )


def test_steps_after_the_rise_may_be_a_tensor_of_many():
    steps = np.arange(6)
    assert np.asarray(WarmUp(0.8, 4)(steps)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
