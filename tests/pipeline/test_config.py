"""Claims about the settings: what differs is named, what cannot be is refused by its option."""

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from models.options import Recommendation, Sentiment
from pipeline.config import Config, Data, Gate, check, difference, to_json
from pipeline.errors import USAGE, UserError
from pipeline.presets import PRESETS, preset_of


def changed(config: Config, name: str, value: Any) -> Config:
    """The config with `section.field` set."""
    section, field = name.split(".")
    part = dataclasses.replace(getattr(config, section), **{field: value})
    return dataclasses.replace(config, **{section: part})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_plain_json_and_comes_back_equal(name):
    values = to_json(preset_of(name))
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert difference(values, json.loads(json.dumps(values))) == []


def test_json_names_the_task_and_holds_paths_and_tuples_as_text_and_lists():
    config = changed(preset_of("digits-sample"), "data.path", Path("/data/digits"))
    values = to_json(config)
    assert values["model"]["task"] == "image"
    assert values["model"]["filters"] == [16, 32, 64]
    assert values["data"]["path"] == "/data/digits"
    assert set(values) - {"task"} == {"model", "data", "optimizer", "train", "gate", "push", "run"}


def test_each_field_is_explained():
    for section in (Config, *(type(getattr(preset_of("imdb"), f.name)) for f in dataclasses.fields(Config))):
        assert section.__doc__
        assert not section.__doc__.startswith(f"{section.__name__}("), "the docstring that dataclass makes up"


def test_a_difference_is_one_line_with_section_field_old_and_new():
    old = preset_of("digits-sample")
    new = changed(changed(old, "optimizer.learning_rate", 0.02), "model.filters", (8,))
    assert difference(to_json(old), to_json(new)) == [
        "model.filters: [16, 32, 64] -> [8]",
        "optimizer.learning_rate: 0.003 -> 0.02",
    ]


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({}, {}, []),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": 1}, {}, ["a: 1 -> None"]),
        ({}, {"a": {"b": 1}}, ["a: None -> {'b': 1}"]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 4}}, ["a.c: 2 -> 3", "a.d: None -> 4"]),
        ({"a": {"b": 1}}, {"a": 1}, ["a: {'b': 1} -> 1"]),
        ({"b": 1, "a": 1}, {"a": 2, "b": 2}, ["a: 1 -> 2", "b: 1 -> 2"]),
    ],
)
def test_what_is_only_on_one_side_differs_too(old, new, lines):
    assert difference(old, new) == lines


nan, inf = float("nan"), float("inf")
WRONG = [
    ("digits-sample", "data.validation_fraction", -0.1),
    ("digits-sample", "data.validation_fraction", 1.0),
    ("digits-sample", "data.test_fraction", nan),
    ("digits-sample", "data.max_bad_fraction", 1.5),
    ("digits-sample", "data.shards", 0),
    ("digits-sample", "data.limit", 0),
    ("digits-sample", "data.name", ".."),
    ("digits-sample", "data.name", "digits/../../x"),
    ("digits-sample", "data.name", "digits\0"),
    ("digits-sample", "model.height", 0),
    ("digits-sample", "model.dropout", 1.0),
    ("digits-sample", "model.label_smoothing", -0.1),
    ("digits-sample", "model.l2", -1.0),
    ("digits-sample", "model.filters", ()),
    ("digits-sample", "model.filters", (8, 0)),
    ("digits-sample", "model.filters", (8,) * 6),
    ("digits-sample", "model.stem", -1),
    ("digits-sample", "model.crop", 28),
    ("imdb", "model.vocabulary_size", 0),
    ("imdb", "model.max_tokens", -1),
    ("imdb", "model.units", 0),
    ("movielens", "model.factors", 0),
    ("movielens", "model.k", 0),
    ("imdb", "optimizer.learning_rate", 0.0),
    ("imdb", "optimizer.learning_rate", nan),
    ("imdb", "optimizer.learning_rate", inf),
    ("imdb", "optimizer.warmup_epochs", -1.0),
    ("imdb", "optimizer.final_fraction", 1.1),
    ("imdb", "optimizer.weight_decay", -0.1),
    ("imdb", "optimizer.clip_at", 0.0),
    ("imdb", "optimizer.decay_epochs", 0.0),
    ("imdb", "optimizer.decay_rate", 0.0),
    ("imdb", "train.batch_size", 0),
    ("imdb", "train.epochs", -1),
    ("imdb", "train.patience", 0),
    ("imdb", "train.keep", 0),
    ("imdb", "train.steps_per_call", 0),
    ("imdb", "train.seed", -1),
    ("imdb", "train.seed", 2**32),
    ("imdb", "gate.tolerance", {"accuracy": -0.1}),
    ("imdb", "gate.min_examples", -1),
]


@pytest.mark.parametrize(("preset", "name", "value"), WRONG)
def test_a_value_out_of_range_is_refused_by_its_option(preset, name, value):
    with pytest.raises(UserError) as raised:
        check(changed(preset_of(preset), name, value))
    assert str(raised.value).startswith(f"--{name.replace('_', '-')}")
    assert raised.value.code == USAGE
    assert "\n" not in str(raised.value)


def test_shares_that_leave_no_training_rows_are_refused():
    config = changed(preset_of("digits-sample"), "data.validation_fraction", 0.5)
    with pytest.raises(UserError, match="leave no training rows"):
        check(changed(config, "data.test_fraction", 0.5))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.limit", 1),
        ("data.validation_fraction", 0.0),
        ("data.name", "movielens/100k-ratings:0.1.1"),
        ("model.dropout", 0.0),
        ("model.crop", 0),
        ("model.filters", (8,) * 5),
        ("optimizer.weight_decay", None),
        ("optimizer.final_fraction", 1.0),
        ("train.seed", 2**32 - 1),
        ("gate.min_examples", 0),
    ],
)
def test_a_value_at_the_edge_of_its_range_is_taken(name, value):
    config = changed(preset_of("digits-sample"), name, value)
    assert check(config) is config


@pytest.mark.parametrize(("stem", "pool", "most"), [(0, "last", 5), (0, "first", 4), (6, "last", 4), (6, "first", 3)])
def test_no_more_stages_are_taken_than_can_halve_17_pixels_or_the_15_that_a_stem_leaves(stem, pool, most):
    config = preset_of("digits-sample")
    for filters in ((8,) * most, (8,) * (most + 1)):
        model = dataclasses.replace(config.model, height=17, width=20, stem=stem, pool=pool, filters=filters)
        refused = pytest.raises(UserError, match=f"give 1 to {most} stages") if len(filters) > most else nullcontext()
        with refused:
            check(dataclasses.replace(config, model=model))


NAMES = [
    "../x",
    "a/b",
    "..",
    ".",
    "",
    "a..b",
    "x\0",
    "%2e%2e",
    "a b",
    "a\n",
    "-x",
    ".hidden",
    "a\\b",
    "é",
    "a" * 65,
    "/x",
]


@pytest.mark.parametrize("option", ["run.name", "run.model"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_could_leave_its_folder_is_refused(option, name):
    with pytest.raises(UserError, match=f"--{option}") as raised:
        check(changed(preset_of("imdb"), option, name))
    assert raised.value.code == USAGE
    assert "\n" not in str(raised.value)
    assert "\0" not in str(raised.value)


@pytest.mark.parametrize("name", ["a", "0", "imdb-2.1_x", "A" * 64, "a.b"])
def test_a_plain_name_is_taken(name):
    check(changed(preset_of("imdb"), "run.name", name))


def test_where_things_lie_follows_from_root_and_names():
    config = changed(changed(preset_of("imdb"), "run.root", Path("/big disk")), "run.name", "second")
    assert config.records_root == Path("/big disk/records/imdb_reviews")
    assert config.runs_root == Path("/big disk/runs/second")
    assert config.exports_root == Path("/big disk/exports/imdb")
    assert config.cache_root == Path("/big disk/.cache")
    assert changed(config, "run.cache", Path("/cache")).cache_root == Path("/cache")


def test_records_of_each_data_set_and_fold_lie_apart():
    folds = [Config(model=Recommendation(), data=Data(source="ml-100k", fold=fold)) for fold in (1, 2)]
    assert [config.records_root.name for config in folds] == ["ml-100k-u1", "ml-100k-u2"]
    nested = Config(model=Recommendation(), data=Data(source="tfds", name="movielens/100k-ratings"))
    assert nested.records_root == Path("records/movielens-100k-ratings")


def test_a_config_cannot_be_changed_in_place():
    config = Config(model=Sentiment())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gate = Gate()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.epochs = 3
