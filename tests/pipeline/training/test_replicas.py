"""Two replicas make the updates of one that has the whole batch, for every optimizer, through the compiled step."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.spec import ModelSpec
from pipeline.config import Config, Optimizer, Train
from pipeline.training import inputs, step
from pipeline.training.rows import Column, Rows
from tests.custom_optimizers.suite import CASES, Case

ROWS, BATCH, UPDATES, BAR = 44, 12, 20, 1e-6  # the last batch of an epoch has 8 rows: the second replica's has 2 of 6
CLIPS = {"none": {}, "norm": {"clipnorm": 0.1}, "global_norm": {"global_clipnorm": 0.1}, "value": {"clipvalue": 0.02}}
KERAS = [
    Case("keras SGD", lambda **o: keras.optimizers.SGD(0.05, momentum=0.9)),
    Case("keras Adam", lambda **o: keras.optimizers.Adam(0.05)),
]
EVERY = {case.name: case for case in (*KERAS, *CASES)}


def build(options, analysis) -> keras.Model:
    x = keras.Input([3], name="x")
    return keras.Model({"x": x}, keras.layers.Dense(2)(keras.layers.Dense(6, "tanh")(x)))


def loss(target, outputs, options):
    return tf.reduce_sum(tf.square(outputs - target), axis=-1)  # [batch]


SPEC = ModelSpec(inputs=None, target=None, build=build, loss=loss, serve=None, monitor="loss")


@pytest.fixture(autouse=True)
def double():
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    yield
    keras.config.set_dtype_policy(before[0])
    keras.config.set_floatx(before[1])


def losses(case: Case, clip: str, strategy) -> np.ndarray:
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 3))
    rows = Rows({"x": Column(x)}, np.stack([x[:, 0] * x[:, 1], np.sin(x[:, 2])], axis=1))
    config = Config(
        model=types.SimpleNamespace(task="image"),  # type: ignore[arg-type]
        optimizer=Optimizer(clip=clip, clip_at=next(iter(CLIPS[clip].values()), 1.0)),
        train=Train(batch_size=BATCH, steps_per_call=1),
    )
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = SPEC.build(None, None)
        optimizer = case.make(**CLIPS[clip])
        optimizer.build(model.trainable_variables)
    batches = inputs.Batches(rows, config, strategy)
    steps = step.compiled(model, optimizer, SPEC, config, strategy)
    outcomes = [steps(batches.part(i, 1), True) for i in range(UPDATES)]
    batches.close()
    return np.array([(outcome.loss, outcome.norm) for outcome in outcomes], np.float64)


def assert_same(case: Case, clip: str = "none") -> np.ndarray:
    two = losses(case, clip, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice()))
    one = losses(case, clip, tf.distribute.OneDeviceStrategy("CPU:0"))
    np.testing.assert_allclose(two, one, rtol=BAR)
    assert len(np.unique(one[:, 0])) == UPDATES, "the weights move"
    return one


@pytest.mark.parametrize("name", ["SGD", "keras Adam"])
def test_two_replicas_equal_one(name):
    assert_same(EVERY[name])


@pytest.mark.parametrize("name", ["keras SGD", "Momentum"])
def test_two_replicas_equal_one_where_clipping_bites(name):
    clipped = assert_same(EVERY[name], "global_norm")
    assert (clipped[:, 1] > 0.1).any(), "no gradient was as long"


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", EVERY)
def test_two_replicas_equal_one_for_every_rule_with_and_without_clipping(name, clip):
    assert_same(EVERY[name], clip)
