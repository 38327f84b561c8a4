"""Where raw rows come from. `open_source` finds the module that knows the source; that module checks the options."""

from importlib import import_module
from pathlib import Path

from pipeline.config import Data
from pipeline.errors import MISSING, USAGE, UserError
from pipeline.sources.source import Source

MODULES = {"sample": "sample", "tfds": "tfds", "ml-100k": "folds"}
"""Source -> the module here that has `open_source(data, task, cache)`; imported only when used: some are heavy."""


def open_source(data: Data, task: str, cache: Path) -> Source:
    """The source that `data` names, checked as far as possible without reading its rows.

    `cache` is the folder for what is fetched. Raises UserError: USAGE for options that do not fit, MISSING for files
    that are not there, UNAVAILABLE for a failed fetch, DATA for files with wrong contents.
    """
    if data.source not in MODULES:
        raise UserError(f"--data.source {data.source} is unknown; there are {', '.join(MODULES)}.", USAGE)
    if data.limit is not None and data.limit < 1:
        raise UserError(f"--data.limit {data.limit} leaves no rows; pass 1 or more, or leave it out.", USAGE)
    if data.columns and data.source != "tfds":
        raise UserError(f"--data.columns does not apply to --data.source {data.source}; leave it out.", USAGE)
    try:
        module = import_module(f"{__name__}.{MODULES[data.source]}")
    except ModuleNotFoundError as error:
        if str(error.name).startswith(__name__):
            raise
        raise UserError(
            f"--data.source {data.source} needs the package {error.name}; run pip install '.[data]' in the project's "
            "folder.",
            MISSING,
        ) from None
    return module.open_source(data, task, Path(cache))
