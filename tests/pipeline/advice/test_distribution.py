"""verify-distribution tells a model that replicas train as one does from those that they do not, and says why."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers
from models import image
from pipeline import manifest
from pipeline.advice.distribution import Comparison, compare, verify
from pipeline.advice.proofs import Distribution
from pipeline.config import Config
from pipeline.errors import REFUSED, USAGE, UserError
from pipeline.training import descent
from tests import tiny


def config_of(task, root, model=None, train=None, **options):
    """Six batches of 18 rows an epoch, of which the last has 6."""
    config = tiny.config(task, root, batch_size=18, **(train or {}))
    sections = {f.name: getattr(config, f.name) for f in dataclasses.fields(Config)}
    sections["model"] = dataclasses.replace(config.model, **(model or {}))
    sections["optimizer"] = dataclasses.replace(config.optimizer, clip="global_norm", clip_at=0.05)
    return Distribution(**sections, **options)


def with_records(task, root):
    """Puts records under a root that a config of the task finds there."""
    path = tiny.records_dir(task, root) / manifest.NAME
    described = {name: value for name, value in json.loads(path.read_text()).items() if name != manifest.SEAL}
    path.write_text(json.dumps({**described, "key": {"task": task, "settings": {}}}))
    return root


@pytest.fixture
def root(tmp_path):
    return with_records("image", tmp_path)


def test_replicas_equal_one_with_dropout_augmentation_batch_norm_penalties_clipping_and_short_batches(root, capsys):
    before = keras.config.dtype_policy(), keras.config.floatx()
    verify(config_of("image", root, {"l2": 1e-3}, steps=6), "tiny")
    said = capsys.readouterr().out
    assert "updates 4 to 9, on 1 replica and on 2; number 6 ends an epoch, with 6 of 18 rows" in said
    assert said.count("apart\n") == 6
    assert "verdict: 2 replicas equal 1" in said
    assert (keras.config.dtype_policy(), keras.config.floatx()) == before


def test_the_schedule_stands_where_the_updates_do(tmp_path, monkeypatch):
    made, right = [], descent.optimizer_of
    monkeypatch.setattr(descent, "optimizer_of", lambda *_: made.append(right(*_)) or made[-1])
    compare(config_of("recommendation", tmp_path, steps=4), tiny.records_dir("recommendation", tmp_path))
    assert [int(optimizer.iterations.numpy()) for optimizer in made] == [8, 8]  # the first update was number 5


def test_dropout_of_keras_is_named_as_the_cause(root, monkeypatch):
    monkeypatch.setattr(image, "Dropout", keras.layers.Dropout)
    with pytest.raises(UserError, match=r"layers dropout\w*, dropout\w* draw .* use models\.noise\.Dropout") as raised:
        verify(config_of("image", root, steps=2), "tiny")
    assert raised.value.code == REFUSED


def test_batch_norm_that_is_not_synchronised_proves_nothing(root):
    with pytest.raises(UserError, match=r"batch normalisation over each replica's share must be different") as raised:
        verify(config_of("image", root, {"sync_batch_norm": False}, steps=2), "tiny")
    assert raised.value.code == REFUSED


def test_a_gradient_that_is_summed_twice_is_found_though_adam_and_clipping_do_not_care(tmp_path, monkeypatch):
    right = custom_optimizers.sum_over_replicas
    monkeypatch.setattr(custom_optimizers, "sum_over_replicas", lambda gradients: right(right(gradients)))
    with pytest.raises(UserError, match=r"first above it at update 5; no layer draws .* twice or not at all"):
        verify(config_of("recommendation", with_records("recommendation", tmp_path), steps=4), "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("task", tiny.TASKS)
def test_two_replicas_equal_one_over_twenty_updates(task, tmp_path):
    compared = compare(config_of(task, tmp_path), tiny.records_dir(task, tmp_path))
    assert len(compared.values) == 20
    assert compared.apart.max() < 1e-12
    assert not compared.random
    assert not compared.unsynchronised


def test_recurrent_dropout_counts_as_random_and_an_lstm_without_does_not():
    from pipeline.advice.distribution import _draws_by_replica, _layers

    source = keras.Input([3, 2])
    x = keras.layers.Bidirectional(keras.layers.LSTM(2, return_sequences=True), name="plain")(source)
    x = keras.layers.GRU(2, recurrent_dropout=0.1, return_sequences=True, name="random")(x)
    model = keras.Model(source, keras.layers.GaussianNoise(0.1, name="noise")(x))
    assert {layer.name for layer in _layers(model) if _draws_by_replica(layer)} == {"gru_cell", "noise"}
    assert not any(_draws_by_replica(layer) for layer in _layers(model.get_layer("plain")))


@pytest.mark.parametrize(
    ("losses", "apart"),
    [
        ([(2.0, 2.0), (2.0, 2.002)], [0.0, 1e-3]),
        ([(np.nan, np.nan), (np.inf, np.inf)], [0.0, 0.0]),
        ([(np.nan, 1.0), (1.0, np.inf)], [np.inf, np.inf]),
        ([(0.0, 0.0)], [0.0]),
    ],
)
def test_losses_that_are_not_finite_are_equal_to_themselves_only(losses, apart):
    values = np.array(losses)[:, None].repeat(2, axis=1)
    assert Comparison(0, 1, 1, values, (), ()).apart == pytest.approx(apart)


@pytest.mark.parametrize(
    ("options", "train", "words"),
    [
        ({"replicas": 1}, {}, "--replicas 1"),
        ({"replicas": 4}, {}, "--train.batch-size 18"),
        ({"replicas": 3}, {}, "2 devices already"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_in_words(root, options, train, words):
    tf.config.list_logical_devices()
    with pytest.raises(UserError, match=words) as raised:
        verify(config_of("image", root, train=train, **options), "tiny")
    assert raised.value.code == USAGE
