"""What is checked before any source is asked, and that only the source in use is imported."""

import subprocess
import sys

import pytest

from pipeline import sources
from pipeline.config import Data
from pipeline.errors import MISSING, USAGE, UserError
from pipeline.sources import open_source


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "csv"}, "there are sample, tfds, ml-100k"),
        ({"source": "sample", "name": "digits", "limit": 0}, "leaves no rows"),
        ({"source": "sample", "name": "digits", "columns": {"label": "y"}}, "does not apply"),
    ],
)
def test_options_that_do_not_fit_are_a_usage_error(settings, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        open_source(Data(**settings), "image", tmp_path)
    assert caught.value.code == USAGE


def test_a_missing_package_is_an_error_that_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.delitem(sys.modules, "pipeline.sources.tfds", raising=False)
    with pytest.raises(UserError, match=r"needs the package tensorflow_datasets.*pip install '\.\[data\]'") as caught:
        open_source(Data(source="tfds", name="cifar10", path=tmp_path), "image", tmp_path)
    assert caught.value.code == MISSING


def test_every_source_has_its_module_and_only_the_one_in_use_is_imported():
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.config import Data; from pipeline.sources import open_source\n"
        "try: open_source(Data(source='sample', name='none'), 'image', Path('cache'))\n"
        "except Exception as error: print(error)\n"
        "assert 'tensorflow' not in sys.modules and 'tensorflow_datasets' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "there are digits, reviews, ratings" in done.stdout
    assert set(sources.MODULES) == {"sample", "tfds", "ml-100k"}
