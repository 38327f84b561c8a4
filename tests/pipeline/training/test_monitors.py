"""Monitors tell nets that learn from nets that cannot, and change nothing that training depends on."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import checkpoints
from pipeline.training import diagnosis, journal
from pipeline.training.journal import Journal
from pipeline.training.loop import train
from pipeline.training.monitors import Monitor
from tests import tiny

layers = keras.layers


def mean_squared(target, outputs, options):
    return tf.reduce_mean(tf.square(tf.cast(outputs, tf.float32) - target), axis=-1)  # [batch]


class Spec:
    loss = staticmethod(mean_squared)


class Options:
    model = None


def classifier(*hidden) -> keras.Model:
    """4 -> hidden layers -> 2, from a fixed seed."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    x = source = keras.Input([4], name="x")
    for layer in hidden:
        x = layer(x)
    return keras.Model({"x": source}, layers.Dense(2, name="last")(x))


def dense(name, activation="relu", **options):
    return layers.Dense(8, activation, name=name, **options)


def batch(rows=16):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 4)).astype("float32")
    return {"x": tf.constant(x)}, tf.constant(x[:, :2] - x[:, 2:])


def read(model, update=None):
    """One monitor line; `update` is what happens to the weights meanwhile."""
    monitor = Monitor(model, Spec, Options, *batch())
    monitor.watch()
    if update:
        update(model)
    return monitor.read()


def found(values, *earlier):
    lines = [
        {"step": 10 * i, "epoch": i, "split": "monitor", **line} for i, line in enumerate([*earlier, values], start=1)
    ]
    return {finding.kind: finding for finding in diagnosis.diagnose(lines)}


def test_a_deep_sigmoid_net_has_vanishing_gradients_in_its_first_layers():
    values = read(classifier(*(dense(f"hidden_{i}", "sigmoid") for i in range(12))))
    finding = found(values)["vanishing gradients"]
    assert "hidden_0, hidden_1" in finding.words
    assert "last" not in finding.words
    assert "since epoch 1" in finding.words
    assert "ReLU" in finding.words


def test_a_deep_net_of_too_large_weights_has_exploding_gradients():
    wide = keras.initializers.RandomNormal(stddev=3.0)
    values = read(classifier(*(dense(f"hidden_{i}", kernel_initializer=wide) for i in range(8))))
    assert "--optimizer.clip" in found(values)["exploding gradients"].words


def test_units_that_no_example_reaches_are_dead_and_their_layer_is_named():
    drowned = dense("drowned", bias_initializer=keras.initializers.Constant(-100.0))
    values = read(classifier(dense("alive"), drowned))
    assert (values["dead_units/alive"], values["dead_units/drowned"], values["dead_units"]) == (0.0, 1.0, 0.5)
    assert "100% of the units are 0 for every example in drowned" in found(values)["dead units"].words


def test_a_unit_that_one_example_reaches_is_not_dead():
    model = classifier(dense("gate"))
    (x, _), gate = batch(), model.get_layer("gate")
    kernel = np.zeros((4, 8), np.float32)
    kernel[0] = 1.0
    top = np.sort(x["x"].numpy()[:, 0])  # the bias lets through all, one, or none of the examples
    gate.set_weights([kernel, np.repeat([-top[0] + 1, -(top[-1] + top[-2]) / 2, -top[-1] - 1], [2, 3, 3])])
    assert read(model)["dead_units"] == 3 / 8


@pytest.mark.parametrize(
    ("hidden", "names"),
    [
        ([layers.Dense(8), layers.ReLU(name="r")], {"r"}),
        ([layers.Dense(8), layers.Activation("relu6", name="a")], {"a"}),
        ([layers.Dense(8, tf.nn.relu, name="d")], {"d"}),
        ([layers.Dense(8), keras.ops.relu], {"relu"}),
        ([keras.Sequential([layers.Dense(8, "relu", name="inner")])], {"inner"}),
        ([layers.Dense(8, "tanh"), layers.LeakyReLU(), layers.Dense(8, "gelu")], set()),
    ],
    ids=["layer", "activation", "tensorflow", "operation", "nested", "none"],
)
def test_relus_are_found_however_they_are_written(hidden, names):
    values = read(classifier(*hidden))
    assert {name.removeprefix("dead_units/") for name in values if "dead_units/" in name} == names
    assert ("dead_units" in values) == bool(names)


def test_units_of_a_convolution_are_its_channels():
    keras.utils.set_random_seed(0)
    source = keras.Input([6, 6, 1], name="x")
    bias = keras.initializers.Constant([0.0, -100.0, 0.0, -100.0])
    x = layers.Conv2D(4, 3, activation="relu", bias_initializer=bias, name="filters")(source)
    model = keras.Model({"x": source}, layers.Dense(2)(layers.Flatten()(x)))
    images = tf.random.stateless_normal((16, 6, 6, 1), [1, 2])
    assert Monitor(model, Spec, Options, {"x": images}, tf.zeros((16, 2))).read()["dead_units/filters"] == 0.5


def test_update_to_weight_is_the_length_of_the_update_over_that_of_the_weights():
    def grow(model):
        for variable in model.trainable_variables:
            variable.assign(variable * 1.25)

    values = read(classifier(dense("hidden")), grow)
    assert values["update_to_weight"] == pytest.approx(0.25)
    assert "25%" in found(values)["updates too large"].words
    assert "update_to_weight" not in Monitor(classifier(), Spec, Options, *batch()).read()  # not watched


def test_updates_are_too_small_when_they_are_in_the_first_two_epochs_and_not_at_the_end_of_a_schedule():
    usual, tiny_one = {"update_to_weight": 1e-3}, {"update_to_weight": 1e-8}
    assert "updates too small" in found(tiny_one, tiny_one)
    assert not found(tiny_one, usual, usual)
    assert not found(tiny_one)


def test_gradients_are_those_of_the_mean_loss_over_the_weights():
    model = classifier()
    (x, target), last = batch(), model.get_layer("last")
    kernel, bias = last.get_weights()
    error = (x["x"].numpy() @ kernel + bias - target.numpy()) / 16  # the loss's derivative by the outputs
    length = np.sqrt(np.sum((x["x"].numpy().T @ error) ** 2) + np.sum(error.sum(0) ** 2))
    assert read(model)["gradient/last"] == pytest.approx(length / np.linalg.norm(kernel), rel=1e-5)


def test_of_a_table_only_the_rows_that_are_read_count():
    """So that a vast table does not look as if it had no gradient."""
    lengths = []
    for rows in (4, 40_000):
        keras.utils.set_random_seed(0)
        source = keras.Input([], dtype="int32", name="x")
        table = layers.Embedding(rows, 3, embeddings_initializer="ones", name="table")
        model = keras.Model({"x": source}, layers.Dense(2, kernel_initializer="ones")(table(source)))
        ids = tf.constant([1, 1, 2, 3] * 4)
        lengths.append(Monitor(model, Spec, Options, {"x": ids}, tf.zeros((16, 2))).read()["gradient/table"])
    assert lengths[0] == pytest.approx(lengths[1])


def trained(task, root, **options):
    """The journal's monitor lines and the last checkpoint's arrays of a run of two epochs."""
    keras.backend.clear_session(free_memory=False)  # layers are numbered on through the life of a process
    run = train(tiny.config(task, root, **options), tiny.records_dir(task, root))
    reader = tf.train.load_checkpoint(str(checkpoints.listed(run / "checkpoints")[-1] / "state"))
    arrays = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    return [line for line in journal.read(run) if line["split"] == "monitor"], arrays


@pytest.mark.parametrize("task", tiny.TASKS)
def test_nets_that_learn_raise_no_alarm(task, tmp_path):
    lines, _ = trained(task, tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert not diagnosis.diagnose(lines)
    assert all(1e-4 < line["update_to_weight"] < 0.1 for line in lines)


def test_training_ends_bit_equal_with_and_without_monitors(tmp_path, monkeypatch):
    _, watched = trained("image", tmp_path / "watched")
    monkeypatch.setattr(Monitor, "read", lambda self: {})
    lines, unwatched = trained("image", tmp_path / "unwatched")
    assert not lines
    assert watched.keys() == unwatched.keys()
    assert all(np.array_equal(watched[name], unwatched[name]) for name in watched)


def test_on_replicas_the_values_are_those_of_one(tmp_path):
    one, _ = trained("recommendation", tmp_path / "one")
    two, _ = trained("recommendation", tmp_path / "two", strategy="mirrored")
    one, two = ({k: v for k, v in lines[-1].items() if k != "split"} for lines in (one, two))
    assert two == pytest.approx(one, rel=1e-3)


def test_gradients_are_added_up_in_pairs_so_that_their_bits_do_not_depend_on_timing():
    keras.backend.clear_session(free_memory=False)
    source = keras.Input([4], name="x")
    x = dense("first")(source)
    model = keras.Model({"x": source}, layers.Dense(2)(keras.layers.add([x, dense("a")(x), dense("b")(x)])))
    monitor = Monitor(model, Spec, Options, *batch())
    monitor.read()
    operations = monitor._look.get_concrete_function(monitor._inputs, monitor._target).graph.get_operations()
    assert [len(each.inputs) for each in operations if each.type == "AddN"] == [2, 2]


def test_a_user_model_is_left_as_it_was():
    """Seeds, statistics and the layers' own call included."""
    model = classifier(dense("hidden"), layers.BatchNormalization(), layers.Dropout(0.5, seed=1))
    before, calls = [v.numpy() for v in model.variables], [vars(layer).get("call") for layer in model.layers]
    read(model)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.variables, strict=True))
    assert [vars(layer).get("call") for layer in model.layers] == calls


def test_the_journal_warns_once_with_resumed_runs_too(tmp_path, caplog):
    bad, good = {"update_to_weight": 0.5}, {"update_to_weight": 1e-3}
    with caplog.at_level(logging.WARNING), Journal(tmp_path, False, 0) as journal:
        for epoch, values in enumerate((good, bad, bad), start=1):
            journal.write(step=epoch, epoch=epoch, split="monitor", **values)
    with caplog.at_level(logging.WARNING), Journal(tmp_path, False, 3) as journal:
        journal.write(step=4, epoch=4, split="monitor", **bad)
    (record,) = caplog.records
    assert "changes the weights by 50%" in record.message
    assert "--optimizer.learning-rate" in record.message


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((0.5, 0.5, 0.5), "since epoch 1"),
        ((0.001, 0.5, 0.5), "since epoch 2"),
        ((0.5, 0.001, 0.001), "in epoch 1"),
        ((0.5, 0.001, 0.5), "in 2 epochs, first in epoch 1"),
    ],
)
def test_a_finding_says_when(sizes, words):
    *earlier, last = ({"update_to_weight": size} for size in sizes)
    assert f", {words}: " in found(last, *earlier)["updates too large"].words
