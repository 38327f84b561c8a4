"""Claims about optimizers, schedules and clipping by config."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config import Optimizer
from pipeline.errors import USAGE, UserError
from pipeline.training import descent

G = [tf.constant([3.0, -4.0]), tf.constant([[0.0, 12.0]])]


def test_clipping_by_value_bounds_each_entry():
    clipped = descent.clip(G, Optimizer(clip="value", clip_at=2.0))
    np.testing.assert_allclose(clipped[0], [2.0, -2.0])
    np.testing.assert_allclose(clipped[1], [[0.0, 2.0]])


def test_clipping_by_norm_scales_each_variable_on_its_own():
    clipped = descent.clip(G, Optimizer(clip="norm", clip_at=6.0))
    np.testing.assert_allclose(clipped[0], [3.0, -4.0])
    np.testing.assert_allclose(clipped[1], [[0.0, 6.0]])


def test_clipping_by_global_norm_keeps_the_direction_of_the_whole_gradient():
    clipped = descent.clip(G, Optimizer(clip="global_norm", clip_at=6.5))
    for before, after in zip(G, clipped, strict=True):
        np.testing.assert_allclose(after, before / 2)


def test_without_clipping_the_gradient_is_untouched():
    clipped = descent.clip(G, Optimizer())
    assert clipped[0] is G[0]


def rates(options: Optimizer, steps: list[int]) -> list[float]:
    schedule = descent.schedule_of(options, steps_per_epoch=10, epochs=5)
    return [float(schedule(step)) if callable(schedule) else schedule for step in steps]


def test_each_schedule_takes_these_values():
    np.testing.assert_allclose(rates(Optimizer(learning_rate=0.5), [0, 49]), 0.5)
    exponential = Optimizer(learning_rate=1.0, schedule="exponential", decay_rate=0.25, decay_epochs=2)
    np.testing.assert_allclose(rates(exponential, [0, 10, 20, 40]), [1, 0.5, 0.25, 0.0625], rtol=1e-6)
    cosine = Optimizer(learning_rate=1.0, schedule="cosine", final_fraction=0.1)
    np.testing.assert_allclose(rates(cosine, [0, 25, 50]), [1, 0.55, 0.1], rtol=1e-6)
    cyclical = Optimizer(learning_rate=1.0, schedule="cyclical", final_fraction=0.2, decay_epochs=1)
    np.testing.assert_allclose(rates(cyclical, [0, 5, 10, 20, 30]), [0.2, 0.6, 1, 0.2, 1], rtol=1e-5)
    warm = Optimizer(learning_rate=1.0, schedule="cosine", warmup_epochs=1)
    np.testing.assert_allclose(rates(warm, [0, 4, 9, 10, 30, 50]), [0.1, 0.5, 1, 1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("Adam", "Adam"), ("sgd", "SGD"), ("adam_w", "AdamW"), ("lion", "Lion")])
def test_an_optimizer_is_found_by_its_name_in_any_case(name, kind):
    optimizer = descent.optimizer_of(Optimizer(name=name, learning_rate=0.25), 10, 5)
    assert type(optimizer).__name__ == kind
    assert isinstance(optimizer, keras.optimizers.Optimizer)
    assert float(optimizer.learning_rate) == 0.25


def test_arguments_and_weight_decay_reach_the_optimizer():
    optimizer = descent.optimizer_of(Optimizer(name="sgd", weight_decay=0.01, arguments={"momentum": 0.9}), 10, 5)
    assert optimizer.momentum == 0.9
    assert optimizer.weight_decay == 0.01


def test_an_optimizer_that_needs_estimates_is_refused_with_the_reason_and_is_not_offered():
    with pytest.raises(UserError, match=r"^--optimizer.name Sophia: needs calls of its estimate method.*$") as raised:
        descent.optimizer_of(Optimizer(name="Sophia"), 10, 5)
    assert raised.value.code == USAGE
    with pytest.raises(UserError, match="there are ") as raised:
        descent.optimizer_of(Optimizer(name="unknown"), 10, 5)
    assert "sophia" not in str(raised.value)


def test_an_unknown_optimizer_or_argument_is_one_line_that_names_it():
    with pytest.raises(UserError, match=r"--optimizer.name sofia: not known; there are .*adamw") as raised:
        descent.optimizer_of(Optimizer(name="sofia"), 10, 5)
    assert raised.value.code == USAGE
    with pytest.raises(UserError, match="beta_9") as raised:
        descent.optimizer_of(Optimizer(arguments={"beta_9": 1.0}), 10, 5)
    assert "\n" not in str(raised.value)
