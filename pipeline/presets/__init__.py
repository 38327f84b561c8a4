"""Presets: a name for a whole Config. Each function's docstring says what to expect of it."""

import dataclasses
from collections.abc import Callable

from pipeline.config import Config
from pipeline.errors import USAGE, UserError
from pipeline.presets.image import cifar10, cifar10_best, cifar10_fast, digits_sample
from pipeline.presets.recommendation import movielens, movielens_best, ratings_sample
from pipeline.presets.sentiment import imdb, imdb_best, reviews_sample

PRESETS: dict[str, Callable[[], Config]] = {
    "cifar10": cifar10,
    "cifar10-fast": cifar10_fast,
    "cifar10-best": cifar10_best,
    "imdb": imdb,
    "imdb-best": imdb_best,
    "movielens": movielens,
    "movielens-best": movielens_best,
    "digits-sample": digits_sample,
    "reviews-sample": reviews_sample,
    "ratings-sample": ratings_sample,
}


def preset_of(name: str) -> Config:
    """The Config of a preset, its run and model named after it. Raises UserError(USAGE) for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"Unknown preset {name!r}: there are {', '.join(PRESETS)}.", USAGE)
    config = PRESETS[name]()
    run = dataclasses.replace(config.run, name=name, model=name.removesuffix("-sample"))
    return dataclasses.replace(config, run=run)
