"""What is written of an optimizer makes the same optimizer again, and what it cannot be made of is refused by name."""

import copy
import inspect
import json

import keras
import numpy as np
import pytest

import custom_optimizers as suite
from custom_optimizers import transforms
from tests.custom_optimizers import problem
from tests.custom_optimizers.suite import each

COUPLED = {"chain"}  # the weights of one variable enter the gradient of another, through a global norm
OPTIONS = {"clipnorm": 0.5, "use_ema": True, "ema_momentum": 0.7, "gradient_accumulation_steps": 2, "name": "mine"}


def path(optimizer, steps=4):
    """The weights after each of some steps from the same start."""
    variables = problem.variables(problem.SMALL)
    return problem.descend(problem.built(optimizer, variables), variables, problem.gradients(steps, problem.SMALL))


def through_json(config):
    return json.loads(json.dumps(config))


def configured(case, **changes):
    """The case's optimizer with changed settings; in those that it wraps as well."""
    config = copy.deepcopy(case.make().get_config())

    def change(config, outermost):
        inner = config.get("inner")
        for name, value in changes.items():
            if name in config or (outermost and name != "learning_rate"):
                config[name] = value
        if inner:
            change(inner["config"], False)

    change(config, True)
    return type(case.make()).from_config(config)


@pytest.mark.parametrize(**each)
def test_an_optimizer_is_the_same_after_json(case):
    optimizer = case.make(**OPTIONS)
    config = optimizer.get_config()
    again = type(optimizer).from_config(through_json(config))
    assert again.get_config() == config
    serialized = through_json(keras.optimizers.serialize(optimizer))
    third = keras.optimizers.deserialize(copy.deepcopy(serialized))
    assert through_json(keras.optimizers.serialize(third)) == serialized
    expected = path(optimizer)
    assert problem.far(path(again), expected) == 0
    assert problem.far(path(third), expected) == 0


@pytest.mark.parametrize(**each)
def test_a_built_optimizer_writes_a_config_that_a_new_one_is_made_of(case):
    """Building settles patterns of paths; that is in the config too."""
    optimizer = case.make()
    expected = path(optimizer)
    again = type(optimizer).from_config(through_json(optimizer.get_config()))
    assert problem.far(path(again), expected) == 0
    assert again.get_config() == optimizer.get_config()


@pytest.mark.parametrize(**each)
def test_a_learning_rate_is_a_number_or_a_schedule(case):
    constant = keras.optimizers.schedules.ExponentialDecay(1.0, 10, 1.0)
    kinds = {"float": 1.0, "int": 1, "numpy": np.float64(1), "schedule": constant}
    paths = {kind: path(configured(case, learning_rate=rate)) for kind, rate in kinds.items()}
    assert all(problem.far(one, paths["float"]) == 0 for one in paths.values())
    again = through_json(configured(case, learning_rate=constant).get_config())
    assert problem.far(path(type(case.make()).from_config(again)), paths["float"]) == 0


@pytest.mark.parametrize(**each)
def test_a_changed_learning_rate_is_used_and_survives(case):
    optimizer = case.make()
    before = path(case.make())
    optimizer.learning_rate = 0.25
    again = type(optimizer).from_config(through_json(optimizer.get_config()))
    assert float(again.learning_rate) == 0.25
    changed = path(optimizer)
    assert problem.far(changed, before) > 0
    assert problem.far(path(again), changed) == 0


@pytest.mark.parametrize(**each)
def test_variables_can_be_spared_from_weight_decay_before_the_optimizer_is_built(case):
    variables = problem.variables(problem.SMALL)
    stored = problem.gradients(2, problem.SMALL)

    def moved(decay, **spared):
        optimizer = configured(case, weight_decay=decay)
        optimizer.exclude_from_weight_decay(**spared)
        mine = problem.variables(problem.SMALL) if "var_list" not in spared else variables
        problem.built(optimizer, mine)
        optimizer = optimizer if "var_list" in spared else type(optimizer).from_config(optimizer.get_config())
        return problem.descend(optimizer, mine, stored)[-1]

    table, bias = moved(0.3)
    free_table, free_bias = moved(0.0)
    assert problem.far(table, free_table) > 1e-4
    assert problem.far(bias, free_bias) > 1e-4
    by_name = moved(0.3, var_names=["^bias"])
    assert problem.far(by_name, [table, free_bias]) < (1e-3 if case.name in COUPLED else 1e-6)
    by_variable = moved(0.3, var_list=[variables[1]])
    assert problem.far(by_variable, by_name) == 0


@pytest.mark.parametrize(**each)
def test_sparing_variables_of_a_built_optimizer_is_refused(case):
    optimizer = problem.built(case.make(), problem.variables(problem.SMALL))
    with pytest.raises(ValueError, match="before"):
        optimizer.exclude_from_weight_decay(var_names=["bias"])


class Own(suite.Adam):
    def __init__(self, learning_rate=0.1, **kwargs):
        super().__init__(learning_rate, **kwargs)


def test_a_rule_of_ones_own_may_pass_any_arguments_on():
    again = Own.from_config(json.loads(json.dumps(Own(0.2, clipnorm=1.0).get_config())))
    assert (float(again.learning_rate), again.clipnorm) == (pytest.approx(0.2), 1.0)


def built_on(model_layers, optimizer):
    model = keras.Sequential([keras.Input([3]), *model_layers])
    optimizer.build(model.trainable_variables)
    return model, optimizer


def test_a_config_of_one_model_spares_the_right_variables_of_another():
    optimizer = suite.AdamW(0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    _, optimizer = built_on([keras.layers.Dense(2)], optimizer)
    wider = [keras.layers.Dense(3, use_bias=False), keras.layers.Dense(2)]
    model, again = built_on(wider, suite.AdamW.from_config(optimizer.get_config()))
    assert [again._use_weight_decay(v) for v in model.trainable_variables] == [True, True, False]
    given = suite.AdamW(0.1)
    first = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    given.exclude_from_weight_decay(var_list=[first.trainable_variables[1]])
    given.build(first.trainable_variables)
    with pytest.raises(ValueError, match=r"spares variables of a model with 2 .* this one has 3"):
        built_on(wider, suite.AdamW.from_config(given.get_config()))


def test_exclusions_may_be_changed_after_a_config_was_read():
    _, optimizer = built_on([keras.layers.Dense(2)], suite.AdamW(0.1))
    again = suite.AdamW.from_config(optimizer.get_config())
    again.exclude_from_weight_decay(var_names=["kernel"])
    model, again = built_on([keras.layers.Dense(2)], again)
    assert [again._use_weight_decay(v) for v in model.trainable_variables] == [False, True]


def test_a_model_that_is_frozen_whole_is_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    model.compile(suite.ScheduleFreeSGD(0.1), "mse")
    model.trainable = False
    model.save(tmp_path / "frozen.keras")
    assert keras.models.load_model(tmp_path / "frozen.keras").optimizer.built


NESTED = {
    "wrapper in wrapper": lambda: suite.Cautious(suite.Cautious(suite.AdamW(0.05))),
    "chain in wrapper": lambda: suite.Cautious(suite.chain(suite.clip_by_value(0.5), suite.Adam(0.05))),
    "own decay in wrapper": lambda: suite.Cautious(suite.Adan(0.05, weight_decay=0.1)),
    "own decay in chain": lambda: suite.chain(
        suite.clip_by_value(0.5), suite.ScheduleFreeAdamW(0.05, weight_decay=0.1)
    ),
}


@pytest.mark.parametrize("make", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("spare", [False, True], ids=["all decay", "bias spared"])
def test_optimizers_in_optimizers_are_the_same_after_json(make, spare):
    optimizer = make()
    if spare:
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    config = optimizer.get_config()
    again = type(optimizer).from_config(through_json(config))
    assert again.get_config() == config
    expected = path(optimizer)
    assert problem.far(path(again), expected) == 0
    built = type(optimizer).from_config(through_json(optimizer.get_config()))
    assert problem.far(path(built), expected) == 0


# Arguments out of range.

CLASSES = [getattr(suite, name) for name in suite.__all__]
OPTIMIZERS = [
    kind
    for kind in CLASSES
    if isinstance(kind, type) and issubclass(kind, suite.Optimizer) and kind is not suite.Optimizer
]
NEEDED = {"inner": lambda: suite.Adam(0.05), "factors": lambda: {"bias": 2.0}}  # others: 0.5
BASE = {
    "learning_rate": [-1.0, np.nan, np.inf, "fast", True],
    "weight_decay": [-1.0, np.nan, np.inf, "0.1"],
    "clipnorm": [0.0, -1.0, np.nan, "1"],
    "clipvalue": [0.0, -1.0, np.nan],
    "global_clipnorm": [0.0, -1.0, np.nan],
    "loss_scale_factor": [0.0, -2.0, np.nan],
    "gradient_accumulation_steps": [0, 1, -2, 2.5, "2"],
    "ema_momentum": [-0.1, 1.1, np.nan, "0.9"],
    "ema_overwrite_frequency": [0, -1, 1.5],
}
OUTSIDE = {"Ftrl.learning_rate_power": 0.5}  # a number out of range, where that is not -1


def own_numbers(kind):
    """(argument, bad value) pairs of a constructor, judged by the defaults: numbers refuse what is no finite one."""
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        default = parameter.default
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        if name in BASE or not is_number:
            continue
        outside = OUTSIDE.get(f"{kind.__name__}.{name}", -1.0)
        yield from ((name, bad) for bad in (float("nan"), "nonsense", outside))


def call(kind, **arguments):
    required = {
        name: NEEDED.get(name, lambda: 0.5)()
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name != "self"
        and parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    }
    return kind(**{**required, **arguments})


def assert_refused(kind, name, bad, **others):
    try:
        call(kind, **{name: bad}, **others)
    except ValueError as error:
        assert name in str(error), f"{kind.__name__}({name}={bad!r}): {error}"  # noqa: PT017
        return
    pytest.fail(f"{kind.__name__}({name}={bad!r}) was accepted")


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_an_optimizer_refuses_arguments_out_of_range_by_name(kind):
    call(kind)
    inner = "inner" in inspect.signature(kind.__init__).parameters
    shared = [(name, bad) for name, bads in BASE.items() for bad in bads if not (inner and name == "learning_rate")]
    for name, bad in [*shared, *own_numbers(kind)]:
        ema = {"use_ema": True} if name.startswith("ema") else {}
        assert_refused(kind, name, bad, **ema)


@pytest.mark.parametrize("kind", transforms.TRANSFORMS.values(), ids=lambda kind: kind.__name__)
def test_a_transform_refuses_arguments_out_of_range_by_name(kind):
    link = call(kind)
    assert transforms.from_config(through_json(link.get_config())).get_config() == link.get_config()
    numbers = [name for name, value in link.get_config().items() if isinstance(value, float)]
    for name in numbers:
        for bad in (-1.0, float("nan"), "nonsense"):
            assert_refused(kind, name, bad)


def test_an_unknown_argument_is_refused_by_name():
    with pytest.raises((TypeError, ValueError), match="momentun"):
        suite.Adam(0.1, momentun=0.9)


def test_two_ways_of_clipping_at_once_are_refused():
    with pytest.raises(ValueError, match="clipnorm"):
        suite.Adam(0.1, clipnorm=1.0, clipvalue=1.0)
