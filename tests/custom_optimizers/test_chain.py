"""Claims about composition: order, what is refused, and that a saved chain is the same one when it comes back."""

import json

import keras
import numpy as np
import pytest

import custom_optimizers as suite
from custom_optimizers import Adam, AdamW, Optimizer, chain

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = (X @ [[1.0], [2.0], [-1.0], [0.5]]).astype("float32")


@keras.saving.register_keras_serializable("test_chain")
class Descent(Optimizer):
    """w -= rate * g."""

    def update(self, gradient, weight, slots, step):
        return -step.rate * gradient, {}


def moved(optimizer, gradient, weight=(1.0, -2.0)) -> np.ndarray:
    variable = keras.Variable(np.asarray(weight), dtype="float64", name="kernel")
    optimizer.apply([keras.ops.convert_to_tensor(np.asarray(gradient))], [variable])
    return np.asarray(variable) - weight


def model_of(optimizer) -> keras.Model:
    keras.utils.set_random_seed(5)
    hidden = keras.layers.Dense(6, activation="tanh", name="hidden")
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(1, name="top")], name="net")
    model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    return model


def fit(model, epochs=2) -> list[float]:
    return model.fit(X, Y, epochs=epochs, batch_size=16, shuffle=False, verbose=0).history["loss"]


def weights(model) -> list[np.ndarray]:
    return [np.asarray(variable).copy() for variable in model.trainable_variables]


def equal(left: list, right: list) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def many_links():
    """Patterns of every kind; `^net/` stops matching when a Sequential is saved and loaded."""
    return chain(
        suite.adaptive_gradient_clipping(0.5, exclude="^net/top"),
        suite.centralize_gradients(),
        suite.clip_by_global_norm(0.8),
        suite.clip_by_value(0.5),
        Adam(0.05),
        suite.cautious(),
        suite.decay_weights(0.1, only="^net/hidden", exclude="bias"),
        suite.multiply_learning_rate({"^net/top": 3.0, "^net/hidden/bias": 0.5}),
    )


def test_links_before_the_rule_act_in_the_order_given():
    gradient = [3.0, 4.0]
    norm_first = chain(suite.clip_by_global_norm(1.0), suite.clip_by_value(0.7), Descent(1.0))
    value_first = chain(suite.clip_by_value(0.7), suite.clip_by_global_norm(1.0), Descent(1.0))
    assert moved(norm_first, gradient) == pytest.approx([-0.6, -0.7])
    assert moved(value_first, gradient) == pytest.approx([-0.7, -0.7])


def test_links_after_the_rule_act_in_the_order_given():
    gradient, weight = [1.0, 1.0], [1.0, -40.0]
    mask_first = chain(Descent(0.1), suite.cautious(), suite.decay_weights(0.5))
    decay_first = chain(Descent(0.1), suite.decay_weights(0.5), suite.cautious())
    assert moved(mask_first, gradient, weight) == pytest.approx([-0.1 * 2 / 3 - 0.05, -0.1 * 2 / 3 + 2.0])
    assert moved(decay_first, gradient, weight) == pytest.approx([-0.15, 0.0])  # the second step goes up, so it is out


def test_links_after_the_rule_see_the_gradient_that_the_rule_saw():
    # Behind centralizing, the gradient of the second row is negative, so a step up is a step down it.
    kernel = keras.Variable(np.zeros((2, 1)), dtype="float64")
    optimizer = chain(suite.centralize_gradients(), Descent(1.0), suite.cautious())
    optimizer.apply([keras.ops.convert_to_tensor(np.array([[3.0], [1.0]]))], [kernel])
    assert np.asarray(kernel).ravel() == pytest.approx([-2 / 3, 2 / 3])


def test_the_options_of_the_rule_hold_in_the_chain():
    rule = AdamW(0.02, weight_decay=0.3, clipnorm=0.5, gradient_accumulation_steps=2)
    linked = chain(suite.clip_by_value(100.0), AdamW(0.02, 0.3, clipnorm=0.5, gradient_accumulation_steps=2))
    alone, chained = model_of(rule), model_of(linked)
    fit(alone), fit(chained)
    for left, right in zip(weights(alone), weights(chained), strict=True):
        assert left == pytest.approx(right, abs=1e-6)


def test_options_of_the_chain_replace_those_of_the_rule():
    assert moved(chain(Descent(1.0, clipvalue=5.0), clipvalue=0.5), [3.0, 4.0]) == pytest.approx([-0.5, -0.5])


def test_the_learning_rate_of_a_chain_can_be_set_and_scheduled():
    optimizer = chain(suite.clip_by_value(9.0), Descent(1.0))
    optimizer.learning_rate = 0.25
    assert moved(optimizer, [3.0, 4.0]) == pytest.approx([-0.75, -1.0])
    scheduled = chain(suite.clip_by_value(9.0), Descent(suite.WarmUp(1.0, 4)))
    assert moved(scheduled, [3.0, 4.0]) == pytest.approx([-0.75, -1.0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: chain(), ValueError, "exactly one optimizer, got 0"),
        (lambda: chain(suite.clip_by_value(1.0)), ValueError, "exactly one optimizer, got 0"),
        (lambda: chain(Adam(), AdamW()), ValueError, "exactly one optimizer, got 2"),
        (lambda: chain(Adam(), suite.clip_by_value(1.0)), ValueError, "clip_by_value has no effect after"),
        (lambda: chain(Adam(), suite.centralize_gradients()), ValueError, "centralize_gradients has no effect after"),
        (lambda: chain(suite.cautious(), Adam()), ValueError, "cautious has no effect before"),
        (lambda: chain(suite.decay_weights(0.1), Adam()), ValueError, "decay_weights has no effect before"),
        (lambda: chain(keras.optimizers.Adam()), ValueError, "one optimizer of custom_optimizers, got"),
        (lambda: chain("adam"), ValueError, "one optimizer of custom_optimizers, got 'adam'"),
        (lambda: suite.Cautious(keras.optimizers.Adam()), TypeError, "Cautious wraps optimizers of custom_optimizers"),
        (lambda: suite.Chain(Adam(), before=[{"name": "nope"}]), ValueError, "'nope' is not a transform"),
        (lambda: suite.Cautious(used()), ValueError, "built already"),
    ],
)
def test_what_cannot_be_composed_is_refused_and_said_why(make, error, message):
    with pytest.raises(error, match=message):
        make()


def used():
    optimizer = Adam()
    optimizer.build([keras.Variable([1.0])])
    return optimizer


def test_a_chain_comes_back_from_json_with_every_link():
    optimizer = many_links()
    written = json.dumps(keras.optimizers.serialize(optimizer))
    again = keras.optimizers.deserialize(json.loads(written))
    assert type(again) is suite.Chain
    assert again.get_config() == optimizer.get_config()
    assert [link["name"] for link in (*again.before, *again.after)] == [
        "adaptive_gradient_clipping",
        "centralize_gradients",
        "clip_by_global_norm",
        "clip_by_value",
        "cautious",
        "decay_weights",
        "multiply_learning_rate",
    ]
    left, right = model_of(optimizer), model_of(again)
    assert fit(left) == fit(right)
    assert equal(weights(left), weights(right))


FOLLOWING = {
    "Schedule-Free": lambda: suite.ScheduleFreeSGD(0.1),
    "Lookahead": lambda: suite.Lookahead(suite.SGD(0.1)),
    "SWA": lambda: suite.StochasticWeightAveraging(suite.SGD(0.1), 2, 2),
    "in a chain": lambda: chain(suite.clip_by_value(1.0), suite.ScheduleFreeSGD(0.1)),
}


@pytest.mark.parametrize("make", FOLLOWING.values(), ids=FOLLOWING)
def test_nothing_may_change_the_steps_that_averages_follow(make):
    for around in (
        suite.Cautious,
        lambda rule: chain(rule, suite.decay_weights(0.1)),
        lambda rule: chain(rule, suite.cautious()),
    ):
        with pytest.raises(ValueError, match="averages follow the weights as it moves them"):
            around(make())
    chain(suite.clip_by_value(1.0), make(), suite.multiply_learning_rate({"bias": 2.0}))


@pytest.mark.parametrize("make", [lambda: suite.SAM(suite.SGD(0.1)), lambda: suite.Sophia(0.1)], ids=["SAM", "Sophia"])
def test_what_has_a_part_outside_of_the_update_must_be_outermost(make):
    for around in (suite.Cautious, suite.Lookahead, lambda rule: chain(suite.clip_by_value(1.0), rule)):
        with pytest.raises(ValueError, match="it must be the outermost"):
            around(make())


def descended(optimizer, names, steps=50) -> dict[str, np.ndarray]:
    """The weights to evaluate by name, after updates by gradients that are the weights themselves."""
    variables = [keras.Variable(np.ones(2), name=name) for name in names]
    optimizer.build(variables)
    for _ in range(steps):
        optimizer.apply([keras.ops.convert_to_tensor(np.asarray(v)) for v in variables], variables)
    return {v.name: np.asarray(x) for v, x in zip(variables, optimizer.evaluation_values(variables), strict=True)}


@pytest.mark.parametrize("names", [("frozen", "head"), ("head", "frozen")])
def test_a_first_variable_that_stays_keeps_no_average_back(names):
    made = chain(suite.ScheduleFreeSGD(0.1), suite.multiply_learning_rate({"frozen": 0.0}))
    found = descended(made, names)
    np.testing.assert_array_equal(found["frozen"], 1.0)
    assert found["head"].max() < 0.1


def test_the_rate_that_swats_measures_does_not_depend_on_which_variable_comes_first():
    ratios = []
    for names in (("body", "head"), ("head", "body")):
        made = chain(suite.SWATS(0.01, tolerance=0.5), suite.multiply_learning_rate({"head": 10.0}))
        descended(made, names)
        ratios.append(float(np.asarray(made._state.shared["ratio"])))
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-5)
    assert ratios[0] > 0


def test_a_chain_of_wrappers_comes_back_from_json():
    optimizer = chain(suite.clip_by_value(1.0), suite.Cautious(suite.Adan(0.1)), use_ema=True)
    again = keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(optimizer))))
    assert again.get_config() == optimizer.get_config()
    assert again.use_ema
    assert fit(model_of(again)) == fit(model_of(optimizer))


def test_every_transform_is_in_a_chain_of_these_tests():
    optimizer = many_links()
    names = {link["name"] for link in (*optimizer.before, *optimizer.after)}
    assert names == set(suite.transforms.TRANSFORMS)


def test_patterns_keep_their_variables_when_a_saved_sequential_loses_its_name(tmp_path):
    model = model_of(many_links())
    before = [variable.path for variable in model.trainable_variables]
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [variable.path for variable in loaded.trainable_variables] != before  # what makes this a test
    assert fit(loaded) == fit(model)
    assert equal(weights(loaded), weights(model))


def test_patterns_keep_their_variables_through_a_second_saving(tmp_path):
    model = model_of(many_links())
    fit(model)
    model.save(tmp_path / "first.keras")
    loaded = keras.models.load_model(tmp_path / "first.keras")
    loaded.save(tmp_path / "second.keras")
    again = keras.models.load_model(tmp_path / "second.keras")
    assert fit(again) == fit(model)
    assert equal(weights(again), weights(model))


def test_excluded_variables_stay_excluded_when_a_saved_sequential_loses_its_name(tmp_path):
    optimizer = AdamW(0.05, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["^net/hidden"])
    model = model_of(optimizer)
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert fit(loaded) == fit(model)
    assert equal(weights(loaded), weights(model))


def test_a_new_chain_from_an_old_config_matches_patterns_by_path_if_it_was_never_built():
    config = keras.optimizers.serialize(chain(Descent(1.0), suite.decay_weights(0.5, only="kernel")))
    optimizer = keras.optimizers.deserialize(config)
    assert moved(optimizer, [0.0, 0.0]) == pytest.approx([-0.5, 1.0])


def test_weight_decay_given_to_a_chain_reaches_a_rule_that_does_its_own():
    ends = []
    for make in (
        lambda: chain(suite.ScheduleFreeSGD(0.1), weight_decay=0.5),
        lambda: chain(suite.ScheduleFreeSGD(0.1, weight_decay=0.5)),
    ):
        variable = keras.Variable(np.ones(3), dtype="float64")
        optimizer = make()
        for _ in range(3):
            optimizer.apply([keras.ops.ones(3, "float64")], [variable])
        ends.append(variable.numpy())
    assert np.array_equal(*ends)
