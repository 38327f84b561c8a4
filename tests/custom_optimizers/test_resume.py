"""A run that is killed and resumed goes on bit for bit, whichever way it was saved, also inside a window of batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers as suite
from tests.custom_optimizers import problem
from tests.custom_optimizers.suite import each

SHAPES = {"table": (problem.ROWS, 2), "kernel": (6, 2), "bias": (2,)}
KILLED = 3  # updates before it, an odd number: between the two mini-batches of a window
WINDOW = {"gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}


def new(case, options, seed=0):
    """A model and its optimizer, both built."""
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            suite.SparseEmbedding(problem.ROWS, 2, name="embedding"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="head"),
        ]
    )
    for variable, first in zip(model.trainable_variables, problem.variables(SHAPES, seed=seed), strict=True):
        variable.assign(first)
    optimizer = case.make(**options)
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    return model, optimizer


def native(model, optimizer):
    return [variable.value for variable in [*model.variables, *optimizer.variables]]


class Keras:
    """model.save and keras.models.load_model."""

    def save(self, model, optimizer, folder):
        model.save(folder / "model.keras")

    def load(self, case, options, folder):
        model = keras.models.load_model(folder / "model.keras")
        return model, model.optimizer


class Objects:
    """tf.train.Checkpoint of model and optimizer."""

    def save(self, model, optimizer, folder):
        tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(folder / "objects"))

    def load(self, case, options, folder):
        model, optimizer = new(case, options, seed=9)
        read = tf.train.Checkpoint(model=model, optimizer=optimizer).read(str(folder / "objects"))
        read.assert_existing_objects_matched()
        return model, optimizer


class Variables:
    """tf.train.Checkpoint of the plain list of variables, in their order."""

    def save(self, model, optimizer, folder):
        tf.train.Checkpoint(variables=native(model, optimizer)).write(str(folder / "variables"))

    def load(self, case, options, folder):
        model, optimizer = new(case, options, seed=9)
        tf.train.Checkpoint(variables=native(model, optimizer)).read(str(folder / "variables")).assert_consumed()
        return model, optimizer


WAYS = (Keras(), Objects(), Variables())


def assert_goes_on(case, options, folder, make=new):
    stored = problem.gradients(steps=KILLED + 4, shapes=SHAPES)
    model, optimizer = make(case, options)
    problem.descend(optimizer, model.trainable_variables, stored[:KILLED])
    for way in WAYS:
        way.save(model, optimizer, folder)
    expected = problem.descend(optimizer, model.trainable_variables, stored[KILLED:])
    for way in WAYS:
        again, resumed = way.load(case, options, folder)
        path = problem.descend(resumed, again.trainable_variables, stored[KILLED:])
        assert problem.far(path, expected) == 0, way.__doc__
        for one, other in zip(resumed.variables, optimizer.variables, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=f"{way.__doc__} {one.path}")
        evaluated = problem.values(resumed.evaluation_values(again.trainable_variables))
        assert problem.far(evaluated, problem.values(optimizer.evaluation_values(model.trainable_variables))) == 0


@pytest.mark.parametrize(**each)
def test_a_run_resumes_bit_for_bit_inside_an_accumulation_window_with_an_average(case, tmp_path):
    assert_goes_on(case, WINDOW, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"use_ema": True}, {"gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize(**each)
def test_a_run_resumes_bit_for_bit_with_other_options(case, options, tmp_path):
    assert_goes_on(case, options, tmp_path)
