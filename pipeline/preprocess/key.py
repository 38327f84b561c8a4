"""What records are made from: equal keys, equal records; so an existing directory of that fingerprint is used again."""

import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import tensorflow as tf

from pipeline import manifest
from pipeline.config import Config, difference, to_json
from pipeline.sources.source import Source

ELSEWHERE = ("path", "download", "runner", "runner_options")
"""Data settings that say where or how the work is done, not what comes out."""
MODEL_SETTINGS = {"image": ("height", "width", "channels"), "sentiment": ("vocabulary_size",), "recommendation": ()}
CODE = ("pipeline/preprocess", "pipeline/sources", "pipeline/records.py")
MODEL_CODE = {"image": ("models/image.py",), "sentiment": ("models/sentiment.py",), "recommendation": ()}
"""Models whose own functions preprocessing calls."""


def key(config: Config, source: Source) -> dict[str, Any]:
    """The key as JSON values; `manifest.fingerprint` of it names the directory."""
    task = config.task
    value = {
        "task": task,
        "input": source.identity(),
        "settings": {
            "data": {name: value for name, value in to_json(config.data).items() if name not in ELSEWHERE},
            "model": {name: getattr(config.model, name) for name in MODEL_SETTINGS[task]},
        },
        "code": {place: manifest.code_fingerprint(place) for place in (*CODE, *MODEL_CODE[task])},
        "versions": {"apache_beam": beam.__version__, "tensorflow": tf.__version__},
    }
    return json.loads(json.dumps(value))


def explanation(key: dict[str, Any], root: Path) -> str:
    """One line: a hit, or what differs from the committed directory under `root` that is nearest to the key."""
    directory = root / manifest.fingerprint(key)
    if manifest.is_committed(directory):
        return f"hit: {directory} was made from the same input, settings, code and versions."
    others = {}
    for path in sorted(root.glob(f"*/{manifest.NAME}")):
        others[path.parent] = difference(manifest.read(path.parent).get("key", {}), key)
    if not others:
        return f"miss: there are no records under {root} yet."
    nearest = min(others, key=lambda path: len(others[path]))
    return f"miss: {nearest}, the nearest, differs in {'; '.join(others[nearest])}"
