"""Claims about the presets: each is usable as it is, says how, and keeps the published settings."""

import pytest

from pipeline.config import check
from pipeline.errors import USAGE, UserError
from pipeline.presets import PRESETS, preset_of

SAMPLES = [name for name in PRESETS if name.endswith("-sample")]


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_passes_the_check(name):
    config = preset_of(name)
    assert check(config) is config


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_says_what_it_is_and_its_command(name):
    first, *rest = (PRESETS[name].__doc__ or "").strip().splitlines()
    assert first.endswith(".")
    command, *result = (line.strip() for line in rest if line.strip())
    assert command.split()[:3] == ["minibatch", "run", name]
    if not name.endswith("-sample"):
        assert {"seed", "cores"} <= set(" ".join(result).replace(";", " ").replace(",", " ").replace(".", " ").split())


@pytest.mark.parametrize("name", PRESETS)
def test_the_run_is_named_after_the_preset_and_the_model_after_its_subject(name):
    config = preset_of(name)
    assert (config.run.name, config.run.model) == (name, name.removesuffix("-sample"))


def test_no_two_presets_push_to_the_same_model():
    models = [preset_of(name).run.model for name in PRESETS]
    assert len(set(models)) == len(models)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_judges_the_candidate_by_a_bar_and_against_the_live_model(name):
    gate = preset_of(name).gate
    assert gate.at_least or gate.at_most
    assert gate.tolerance
    assert gate.slice_tolerance


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_preset_needs_no_data_of_the_user(name):
    data = preset_of(name).data
    assert (data.source, data.path) == ("sample", None)


@pytest.mark.parametrize(
    ("name", "task", "batch", "source"),
    [
        ("cifar10", "image", 64, "tfds"),
        ("imdb", "sentiment", 32, "tfds"),
        ("movielens", "recommendation", 128, "ml-100k"),
    ],
)
def test_the_full_presets_keep_the_published_batch_and_optimizer(name, task, batch, source):
    config = preset_of(name)
    assert (config.task, config.train.batch_size, config.data.source) == (task, batch, source)
    assert config.optimizer.name == ("lazyadam" if name == "movielens" else "adam")


def test_the_full_presets_regularise_as_published():
    cifar10, imdb, movielens = (preset_of(name) for name in ("cifar10", "imdb", "movielens"))
    assert cifar10.model.batch_norm
    assert cifar10.model.flip
    assert cifar10.model.crop > 0
    assert cifar10.model.dropout > 0
    assert (cifar10.optimizer.schedule, cifar10.optimizer.warmup_epochs > 0) == ("cosine", True)
    assert imdb.model.dropout > 0
    assert movielens.model.l2 > 0


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="Unknown preset 'digits': there are cifar10, cifar10-fast") as raised:
        preset_of("digits")
    assert raised.value.code == USAGE
