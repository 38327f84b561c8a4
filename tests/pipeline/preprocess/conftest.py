"""A source of literal rows, good rows of each task, and a run of the whole job over them."""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from models import options
from pipeline import manifest
from pipeline.config import Config, Data, Run
from pipeline.preprocess.job import preprocess
from pipeline.sources.source import Shard

FINGERPRINTS = functools.cache(manifest.code_fingerprint)
MODELS = {
    "image": options.Image(height=2, width=3, channels=3),
    "sentiment": options.Sentiment(vocabulary_size=5),
    "recommendation": options.Recommendation(),
}


@dataclass
class Literal:
    """Rows as they stand in a test: shard name -> (split, rows)."""

    task: str
    parts: dict[str, tuple[str | None, list[Any]]]
    classes: tuple[str, ...] = ()
    named: dict[str, Any] = field(default_factory=lambda: {"source": "literal"})

    def shards(self) -> list[Shard]:
        return [Shard(name, split) for name, (split, _) in self.parts.items()]

    def read(self, shard: Shard) -> Iterator[dict[str, Any]]:
        yield from self.parts[shard.name][1]

    def identity(self) -> dict[str, Any]:
        return self.named


def image(seed: int, height: int = 2, width: int = 3) -> bytes:
    pixels = tf.random.stateless_uniform([height, width, 3], [seed, 0], 0, 256, tf.int32)
    return tf.io.encode_png(tf.cast(pixels, tf.uint8)).numpy()


def good_row(task: str, number: int) -> dict[str, Any]:
    name = f"r{number}"
    if task == "image":
        return {"id": name, "image_bytes": image(number), "label": "dog" if number % 3 else "cat"}
    if task == "sentiment":
        return {"id": name, "text": f"word{number % 4} and {number}", "label": "pos" if number % 2 else "neg"}
    user, item = f"u{number % 5}", f"i{number}"
    return {"id": name, "user_id": user, "item_id": item, "rating": number % 5 + 1, "timestamp": 1000 + number}


@pytest.fixture(scope="session")
def literal() -> Callable[..., Literal]:
    """literal(task, *rows, n=60): n good rows and then `rows`, in one shard whose splits are ours to make."""

    def make(task: str, *rows: Any, n: int = 60, **more: Any) -> Literal:
        return Literal(task, {"all": (None, [*(good_row(task, number) for number in range(n)), *rows])}, **more)

    return make


@pytest.fixture(scope="session")
def parts() -> Callable[..., Literal]:
    """parts(task, {shard: (split, rows)}): a source of several shards."""
    return Literal


@pytest.fixture(scope="session")
def good() -> Callable[[str, int], dict[str, Any]]:
    return good_row


def settings(task: str, root: Path, **data: Any) -> Config:
    plain = Data(name="literal", shards=2, validation_fraction=0.2, test_fraction=0.2, max_bad_fraction=0.9)
    return Config(MODELS[task], data=replace(plain, **data), run=Run("test", "test", root))


@pytest.fixture
def config(tmp_path) -> Callable[..., Config]:
    """config(task, field=value, ...): two buckets, a fifth for validation and for test, and a generous budget."""

    def make(task: str, root: Path = tmp_path, **data: Any) -> Config:
        return settings(task, root, **data)

    return make


@dataclass
class Made:
    """A records directory, read back."""

    path: Path
    task: str

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.path / "MANIFEST.json").read_text())

    @property
    def analysis(self) -> dict[str, Any]:
        return json.loads((self.path / "analysis.json").read_text())

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]

    @property
    def dead(self) -> dict[str | None, str]:
        return {letter["id"]: letter["reason"] for letter in self.lines("dead_letters.jsonl")}

    def rows(self, split: str) -> list[dict[str, Any]]:
        files = sorted(str(path) for path in self.path.glob(f"{split}-*"))
        examples = [tf.train.Example.FromString(record.numpy()) for record in tf.data.TFRecordDataset(files)]
        return [{name: value(feature) for name, feature in e.features.feature.items()} for e in examples]

    def ids(self, split: str) -> list[str]:
        return [row["id"].decode() for row in self.rows(split)]


def value(feature: tf.train.Feature) -> Any:
    return getattr(feature, feature.WhichOneof("kind")).value[0]


@pytest.fixture(autouse=True)
def code_as_it_was(monkeypatch):
    """Fingerprints of the code are taken once a session, so that editing it meanwhile fails no test."""
    monkeypatch.setattr(manifest, "code_fingerprint", FINGERPRINTS)


@pytest.fixture
def made(config) -> Callable[..., Made]:
    """made(source, field=value, ...): the whole job over `source`."""

    def run(source: Literal, model: options.Options | None = None, **data: Any) -> Made:
        made_with = config(source.task, **data)
        return Made(preprocess(replace(made_with, model=model or made_with.model), source), source.task)

    return run


@pytest.fixture(scope="session")
def plain(literal, tmp_path_factory) -> Callable[[str], Made]:
    """plain(task): the job over 60 good rows, run once a session; to be read, never to be changed."""

    @functools.cache
    def run(task: str) -> Made:
        return Made(preprocess(settings(task, tmp_path_factory.mktemp(task)), literal(task)), task)

    return run
