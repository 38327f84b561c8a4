"""Do live inputs still look like the rows that the model was checked on? A sample of them against statistics.json.

The export carries, for each input, histograms of simple measures over its validation rows: the words of a text and the
share of them that training did not know, the brightness and contrast of an image, whether an id is known, a number
itself. Here the same measures of sampled requests fill the same bins, and the population stability index (PSI) of both
is a metric; under 0.1 is calm, over 0.2 is worth a look. Old requests fade, so that it follows what happens now.
"""

import base64
import json
import logging
import math
import re
import threading
import time
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.example import example_pb2

from serving.server import metrics

PATH = Path("assets.extra", "statistics.json")
BOUND = 0.2
MIN_EXAMPLES = 200  # below, chance alone may exceed the bound
_FADE_AT = 2000  # examples at which all counts are halved
_SECONDS_BETWEEN = 0.02
_MOST_ROWS = 16  # of one request
_WORD = re.compile(r"[\w']+")

log = logging.getLogger("serving")


def read(version: Path) -> dict[str, Any]:
    """What the export says of each input, by its name; empty without the file. Raises ValueError or LookupError."""
    path = version / PATH
    return json.loads(path.read_bytes())["features"] if path.exists() else {}


def monitor(version: Path, signatures: Mapping[str, Any]) -> "Monitor | None":
    """The monitor of a version; None, with a line in the log, when its export says nothing usable of its inputs."""
    aliases = {info.name: alias for signature in signatures.values() for alias, info in signature.inputs.items()}
    try:
        described = read(version)
        if described:
            return Monitor(described, aliases)
        log.warning("%s: no drift monitor, since it has no %s", version, PATH)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("%s: no drift monitor, since %s cannot be read (%s)", version, PATH, error)
    return None


class Histogram:
    """One measure of an input: the bins of the export, and how many live examples fell into each."""

    def __init__(self, described: Mapping[str, Any]):
        self._edges, self._expected = list(described["edges"]), list(described["shares"])
        self._counts = [0.0] * len(self._expected)
        self.examples = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._edges, value)] += 1
        self.examples += 1
        if self.examples >= _FADE_AT:
            self._counts = [count / 2 for count in self._counts]
            self.examples /= 2

    def score(self) -> float:
        """The PSI; half an example is added to every bin, so that an empty one is not infinitely far."""
        bins = len(self._counts)
        found = [(count + 0.5) / (self.examples + 0.5 * bins) for count in self._counts]
        expected = [(share * MIN_EXAMPLES + 0.5) / (MIN_EXAMPLES + 0.5 * bins) for share in self._expected]
        return sum((f - e) * math.log(f / e) for f, e in zip(found, expected, strict=True))


class Feature:
    """One input of the model with all its measures."""

    def __init__(self, described: Mapping[str, Any]):
        self.kind = described["kind"]
        self._known = np.frombuffer(base64.b64decode(described.get("known", "")), "<u4")  # CRC-32, sorted
        self.histograms = {measure: Histogram(each) for measure, each in described.get("measures", {}).items()}

    def add(self, value: Any) -> None:
        for measure, number in self._measures(value):
            if measure in self.histograms and math.isfinite(number):
                self.histograms[measure].add(number)

    def _measures(self, value: Any) -> Iterator[tuple[str, float]]:
        if self.kind == "text":
            words = _WORD.findall(value.decode("utf-8", "replace").lower())
            yield "words", len(words)
            if words:
                yield "unknown", sum(not self._knows(word.encode()) for word in words) / len(words)
        elif self.kind == "id":
            yield "unknown", float(not self._knows(value))
        elif self.kind == "image":
            pixels = value if isinstance(value, np.ndarray) else _decoded(value)
            if pixels is not None and pixels.size:
                yield "contrast", float(pixels.std()) / 255
                for channel in range(pixels.shape[-1]):
                    yield f"mean_{channel}", float(pixels[..., channel].mean()) / 255
        else:
            yield "value", float(value)

    def _knows(self, word: bytes) -> bool:
        code = zlib.crc32(word)
        place = int(np.searchsorted(self._known, code))
        return place < len(self._known) and int(self._known[place]) == code


def _decoded(data: bytes) -> np.ndarray | None:
    try:
        return tf.io.decode_image(data, expand_animations=False).numpy()
    except tf.errors.OpError:
        return None


class Monitor:
    """Of one version. `offer` costs a request about a microsecond; one thread measures what it takes."""

    def __init__(self, features: Mapping[str, Any], aliases: Mapping[str, str]):
        """`aliases` are the names of inputs by the names of their tensors."""
        self.features = {name: Feature(described) for name, described in features.items()}
        self._aliases = aliases
        self._waiting: SimpleQueue[tuple[str, int, Mapping[str, np.ndarray]] | None] = SimpleQueue()
        self._next = 0.0
        self._loud: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="drift", daemon=True)
        self._thread.start()

    def offer(self, model: str, version: int, feeds: Mapping[str, np.ndarray]) -> None:
        """May take some rows of a request as a sample."""
        now = time.monotonic()
        if now >= self._next and self._waiting.qsize() < 2:
            self._next = now + _SECONDS_BETWEEN
            self._waiting.put((model, version, feeds))

    def close(self) -> None:
        self._waiting.put(None)

    def take(self, model: str, version: int, feeds: Mapping[str, np.ndarray]) -> None:
        """Measures a sample and reports. Raises nothing of what an input may hold."""
        touched = set()
        for tensor, array in feeds.items():
            for name, value in self._values(self._aliases.get(tensor, tensor), array):
                self.features[name].add(value)
                touched.add(name)
        for name in touched:
            for measure, histogram in self.features[name].histograms.items():
                if histogram.examples:
                    self._report(model, version, name, measure, histogram)

    def _values(self, name: str, array: np.ndarray) -> Iterator[tuple[str, Any]]:
        rows = array[:_MOST_ROWS] if array.ndim else array.reshape(1)
        if name in self.features:
            yield from ((name, row) for row in rows if self._fits(self.features[name].kind, row))
        elif array.dtype == object:  # perhaps tf.Examples
            for row in rows:
                try:
                    features = example_pb2.Example.FromString(row).features.feature
                except (DecodeError, TypeError):
                    return
                for inner in features.keys() & self.features.keys():
                    kind = features[inner].WhichOneof("kind")
                    values = getattr(features[inner], kind).value if kind else ()
                    yield from ((inner, value) for value in values if self._fits(self.features[inner].kind, value))

    @staticmethod
    def _fits(kind: str, value: Any) -> bool:
        if kind == "image":
            return isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.ndim == 3)
        if kind in ("text", "id"):
            return isinstance(value, bytes)
        return np.ndim(value) == 0 and not isinstance(value, bytes)

    def _report(self, model: str, version: int, name: str, measure: str, histogram: Histogram) -> None:
        score = histogram.score()
        metrics.drift(model, version, name, measure, score, int(histogram.examples))
        key = f"{name} ({measure})"
        if histogram.examples >= MIN_EXAMPLES and score > BOUND and key not in self._loud:
            self._loud.add(key)
            log.warning(
                "%s/%d: %s drifts: PSI %.2f over %d examples, more than %g; compare with %s of the version",
                *(model, version, key, score, histogram.examples, BOUND, PATH),
            )
        elif score < BOUND / 2 and key in self._loud:
            self._loud.discard(key)
            log.info("%s/%d: %s is back: PSI %.2f", model, version, key, score)

    def _run(self) -> None:
        while (sample := self._waiting.get()) is not None:
            try:
                self.take(*sample)
            except Exception:
                log.exception("a sample for the drift monitor could not be measured")
