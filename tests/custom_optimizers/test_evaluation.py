"""Claims about the weights to evaluate: what they are, that training does not notice them, and what is saved."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers as suite
from custom_optimizers import EvaluationWeights, evaluating, evaluation_weights

X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
Y = (X @ [[1.0], [2.0], [-1.0], [0.5]] + 0.1 * X[:, :1] ** 2).astype("float32")
BATCHES = [X[:16], X[16:32], X[32:]]

AVERAGING = {
    "Schedule-Free AdamW": lambda: suite.ScheduleFreeAdamW(0.05),
    "Schedule-Free SGD": lambda: suite.ScheduleFreeSGD(0.1, weight_decay=0.01),
    "average of our AdamW": lambda: suite.AdamW(0.05, use_ema=True, ema_momentum=0.8),
    "average of Keras' Adam": lambda: keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8),
    "Schedule-Free under loss scaling": lambda: suite.LossScaleOptimizer(suite.ScheduleFreeSGD(0.1), initial_scale=8.0),
    "average of Keras' SGD under Keras' loss scaling": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.8), initial_scale=8.0
    ),
    "Schedule-Free in a chain": lambda: suite.chain(suite.clip_by_global_norm(1.0), suite.ScheduleFreeSGD(0.1)),
}
each = pytest.mark.parametrize("make", AVERAGING.values(), ids=AVERAGING)
FITTED = {name: make for name, make in AVERAGING.items() if name != "Schedule-Free SGD" and "SGD under" not in name}
each_fitted = pytest.mark.parametrize("make", FITTED.values(), ids=FITTED)


def model_of(optimizer, normalized=True, dropout=True, eager=True) -> keras.Model:
    """Eager, since tracing each fit would take most of the time; under replicas it is traced."""
    keras.utils.set_random_seed(3)
    between = [keras.layers.BatchNormalization(momentum=0.9)] if normalized else []
    between += [keras.layers.Dropout(0.3, seed=1)] if normalized and dropout else []
    layers = [keras.Input((4,)), keras.layers.Dense(5, "tanh", name="first"), *between, keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer=optimizer, loss="mse", run_eagerly=eager, jit_compile=False)
    return model


def fit(model, epochs=1, callbacks=(), validation=True, **options):
    data = {"validation_data": (X, Y)} if validation else {}
    return model.fit(
        X, Y, epochs=epochs, batch_size=16, shuffle=False, verbose=0, callbacks=list(callbacks), **data, **options
    ).history


def copies(tensors) -> list[np.ndarray]:
    return [np.asarray(tensor).copy() for tensor in tensors]


def equal(left: list, right: list) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def close(left: list, right: list, tolerance=1e-5) -> bool:
    return all(np.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(left, right, strict=True))


class Path(keras.callbacks.Callback):
    """What the model and its optimizer hold when each batch begins."""

    def __init__(self):
        super().__init__()
        self.states = []

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        rule = getattr(optimizer, "inner_optimizer", optimizer)
        self.states.append(copies([*self.model.variables, *rule.variables]))


def test_schedule_free_evaluates_the_mean_of_its_base_points():
    optimizer, model = suite.ScheduleFreeSGD(0.1), keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer.build(model.trainable_variables)
    z = copies(model.trainable_variables)
    points = []
    for step in range(5):
        gradients = [np.full(w.shape, step - 1.5, "float32") for w in z]
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], model.trainable_variables)
        z = [w - 0.1 * g for w, g in zip(z, gradients, strict=True)]
        points.append(z)
        mean = [np.mean(each, axis=0) for each in zip(*points, strict=True)]
        assert close(copies(evaluation_weights(optimizer, model)), mean, 1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda rule: rule,
        lambda rule: suite.LossScaleOptimizer(rule, initial_scale=1.0),
    ],
    ids=["bare", "under loss scaling"],
)
@pytest.mark.parametrize("sgd", [keras.optimizers.SGD, suite.ScheduleFreeSGD], ids=["Keras'", "ours"])
def test_a_moving_average_evaluates_the_average_of_the_weights_so_far(make, sgd):
    optimizer = make(sgd(0.1, use_ema=True, ema_momentum=0.7))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer.build(model.trainable_variables)
    average = None
    for step in range(4):
        gradients = [keras.ops.full(w.shape, step - 1.5) for w in model.trainable_variables]
        optimizer.apply(gradients, model.trainable_variables)
        now = copies(model.trainable_variables)
        average = now if average is None else [0.7 * a + 0.3 * w for a, w in zip(average, now, strict=True)]
        assert close(copies(evaluation_weights(optimizer, model)), average, 1e-6)


@each
def test_the_weights_themselves_are_evaluated_before_the_first_update(make):
    optimizer = make()
    model = model_of(optimizer)
    weights = copies(model.trainable_variables)
    assert equal(copies(evaluation_weights(optimizer, model)), weights)
    optimizer.build(model.trainable_variables)
    assert equal(copies(evaluation_weights(optimizer, model)), weights)
    with evaluating(optimizer, model):
        assert equal(copies(model.trainable_variables), weights)


@pytest.mark.parametrize(
    "make", [lambda: suite.AdamW(0.05), lambda: keras.optimizers.Adam(0.05)], ids=["ours", "Keras'"]
)
def test_an_optimizer_without_averages_evaluates_what_it_trains(make):
    optimizer = make()
    model = model_of(optimizer)
    fit(model)
    assert equal(copies(evaluation_weights(optimizer, model)), copies(model.trainable_variables))


@each
def test_evaluating_gives_everything_back_to_the_last_bit_even_after_an_error(make):
    model = model_of(make())
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    optimizer, variables = model.optimizer, [*model.variables, *model.optimizer.variables]
    before, weights = copies(variables), copies(model.trainable_variables)
    expected = copies(evaluation_weights(optimizer, model))
    assert not equal(expected, weights)

    def interrupted():
        with evaluating(optimizer, model, BATCHES):
            assert equal(copies(model.trainable_variables), expected)
            assert equal(copies(evaluation_weights(optimizer, model)), expected)  # asked again, they do not move again
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert equal(copies(variables), before)


def test_evaluating_leaves_seeds_where_the_use_of_the_model_took_them():
    model = model_of(suite.ScheduleFreeSGD(0.1))
    model.train_on_batch(X, Y)
    seed = model.layers[2].seed_generator.state
    before = copies([seed])
    with evaluating(model.optimizer, model, BATCHES):
        assert equal(copies([seed]), before)  # estimating statistics draws, and puts them back
        model(X, training=True)
        drawn = copies([seed])
    assert not equal(drawn, before)
    assert equal(copies([seed]), drawn)


def test_statistics_of_batch_normalization_become_the_plain_mean_over_the_batches():
    model = model_of(suite.ScheduleFreeSGD(0.1))
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    first, normalization = model.layers[0], model.layers[1]
    before = copies(normalization.non_trainable_variables)
    with evaluating(model.optimizer, model, BATCHES):
        hidden = [np.asarray(first(batch)) for batch in BATCHES]
        expected = [np.mean([f(h, axis=0) for h in hidden], axis=0) for f in (np.mean, np.var)]
        assert close(copies([normalization.moving_mean, normalization.moving_variance]), expected, 1e-5)
        assert normalization.momentum == 0.9
    assert equal(copies(normalization.non_trainable_variables), before)


def test_statistics_of_a_frozen_layer_stay():
    model = model_of(suite.ScheduleFreeSGD(0.1))
    model.layers[1].trainable = False
    before = copies(model.layers[1].non_trainable_variables)
    with evaluating(model.optimizer, model, BATCHES):
        assert equal(copies(model.layers[1].non_trainable_variables), before)


def test_batches_that_hold_none_are_refused_and_change_nothing():
    model = model_of(suite.ScheduleFreeSGD(0.1))
    model.train_on_batch(X, Y)
    once = iter(BATCHES)
    with evaluating(model.optimizer, model, once):
        pass
    before = copies([*model.variables, *model.optimizer.variables])
    with pytest.raises(ValueError, match="batches must hold at least one"), evaluating(model.optimizer, model, once):
        pass
    assert equal(copies([*model.variables, *model.optimizer.variables]), before)


@each_fitted
def test_training_goes_on_as_without_the_callback_bit_for_bit(make):
    bare, watched = Path(), Path()
    losses = fit(model_of(make()), 2, [bare])["loss"]
    assert fit(model_of(make()), 2, [EvaluationWeights(BATCHES), watched])["loss"] == losses
    assert len(bare.states) == len(watched.states) == 6
    for left, right in zip(bare.states, watched.states, strict=True):
        assert equal(left, right)


@each_fitted
def test_validation_is_at_the_evaluation_weights(make):
    (validated,) = fit(model_of(make()), 1, [EvaluationWeights()])["val_loss"]
    model = model_of(make())
    (elsewhere,) = fit(model, 1)["val_loss"]  # and fit leaves the evaluation weights in the model
    assert validated == pytest.approx(model.evaluate(X, Y, batch_size=16, verbose=0), rel=1e-6)
    assert validated != pytest.approx(elsewhere, rel=1e-3)


@each_fitted
def test_a_checkpoint_of_an_epoch_evaluates_as_validated_and_trains_on_as_the_run_did(make, tmp_path):
    model, path = model_of(make(), dropout=False), tmp_path / "{epoch}.keras"  # Keras does not save seeds
    history = fit(model, 2, [EvaluationWeights(BATCHES), keras.callbacks.ModelCheckpoint(str(path))])
    loaded = keras.models.load_model(tmp_path / "1.keras")
    assert loaded.evaluate(X, Y, batch_size=16, verbose=0) == pytest.approx(history["val_loss"][0], rel=1e-6)
    if getattr(getattr(loaded.optimizer, "inner_optimizer", loaded.optimizer), "use_ema", False):
        return  # an average does not tell the weights that it was taken of: training goes on from the average
    assert fit(loaded, 1, [EvaluationWeights()])["loss"] == pytest.approx(history["loss"][1:], rel=1e-4)


@each_fitted
def test_after_fit_the_model_holds_its_evaluation_weights_and_statistics(make):
    model = model_of(make())
    loss = fit(model, 2, [EvaluationWeights(BATCHES)])["val_loss"][-1]
    assert model.evaluate(X, Y, batch_size=16, verbose=0) == pytest.approx(loss, rel=1e-6)
    assert close(copies(evaluation_weights(model.optimizer, model)), copies(model.trainable_variables), 0)


@pytest.mark.parametrize("name", [name for name in AVERAGING if "average" in name])
def test_fit_twice_goes_on_from_the_average_as_without_the_callback(name):
    bare, watched = model_of(AVERAGING[name]()), model_of(AVERAGING[name]())
    fit(bare), fit(watched, 1, [EvaluationWeights()])
    assert equal(copies(watched.variables), copies(bare.variables))
    assert fit(watched, 1, [EvaluationWeights()])["loss"] == fit(bare)["loss"]
    assert equal(copies(watched.variables), copies(bare.variables))


@pytest.mark.parametrize("name", [name for name in AVERAGING if "Schedule-Free" in name])
def test_fit_twice_is_fit_once_for_schedule_free(name):
    """Without the callback the first batch of the second fit would have its gradient at the evaluation weights."""
    once, twice, callback = model_of(AVERAGING[name]()), model_of(AVERAGING[name]()), EvaluationWeights()
    losses = fit(once, 2, [callback])["loss"]
    assert [*fit(twice, 1, [callback])["loss"], *fit(twice, 1, [callback])["loss"]] == pytest.approx(losses, rel=1e-5)
    assert close(copies(twice.variables), copies(once.variables))


def test_evaluate_alone_is_at_the_evaluation_weights_and_puts_the_others_back():
    model = model_of(suite.ScheduleFreeSGD(0.1))
    for batch in BATCHES:
        model.train_on_batch(batch, batch[:, :1])
    before = copies([*model.variables, *model.optimizer.variables])
    with evaluating(model.optimizer, model):
        expected = model.evaluate(X, Y, verbose=0)
    assert model.evaluate(X, Y, verbose=0) != expected
    assert model.evaluate(X, Y, verbose=0, callbacks=[EvaluationWeights()]) == expected
    assert equal(copies([*model.variables, *model.optimizer.variables]), before)


def replicated(make, normalized: bool) -> keras.Model:
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        return model_of(make(), normalized, eager=False)


@pytest.mark.parametrize(
    "name",
    ["Schedule-Free AdamW", pytest.param("average of our AdamW", marks=pytest.mark.slow), "average of Keras' Adam"],
)
def test_two_replicas_validate_and_end_as_one(name):
    make = AVERAGING[name]
    one, two = model_of(make(), normalized=False), replicated(make, normalized=False)
    expected = fit(one, 2, [EvaluationWeights()])
    assert fit(two, 2, [EvaluationWeights()])["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-4)
    for variable, alone in zip(two.trainable_variables, one.trainable_variables, strict=True):
        for copy in variable.value.values:
            assert close(copies([copy]), copies([alone]), 1e-4)


def test_two_replicas_have_the_same_statistics_after_they_are_estimated_again():
    model = replicated(AVERAGING["Schedule-Free SGD"], normalized=True)
    fit(model, 1, [EvaluationWeights(BATCHES)])
    hidden = [np.asarray(model.layers[0](batch)) for batch in BATCHES]
    for copy in model.layers[1].moving_mean.value.values:
        assert close(copies([copy]), [np.mean(hidden, axis=(0, 1))], 1e-5)
