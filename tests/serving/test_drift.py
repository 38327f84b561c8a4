"""The drift monitor: calm on inputs like those of the export, loud on others, and never in the way of a request."""

import json
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from prometheus_client.parser import text_string_to_metric_families

from models.analysis import ImageAnalysis, RatingsAnalysis, TextAnalysis
from models.options import Image, Recommendation, Sentiment
from pipeline.release import statistics
from serving.server import drift, metrics
from serving.server.batching_parameters import BatchingParameters
from serving.server.flags import Flags
from serving.server.load import Loader

WORDS = [f"word{i}" for i in range(200)]
IDS = [f"u{i}" for i in range(50)]


@pytest.fixture(autouse=True)
def no_scores_of_before():
    for metric in metrics._ALL:
        metric.forget()


def texts(rng, count: int, known: float = 0.95, length: int = 30) -> np.ndarray:
    def word() -> str:
        return WORDS[rng.integers(len(WORDS))] if rng.random() < known else f"new{rng.integers(10**6)}"

    made = [" ".join(word() for _ in range(max(1, rng.poisson(length)))) for _ in range(count)]
    return np.array([text.encode() for text in made], object)


def images(rng, count: int, brightness: float = 0.5, channels: int = 3) -> np.ndarray:
    made = []
    for _ in range(count):
        level = np.clip(brightness + 0.1 * rng.normal(size=channels), 0, 1)
        pixels = np.clip(level * 255 + 20 * rng.normal(size=(8, 8, channels)), 0, 255).astype(np.uint8)
        made.append(tf.io.encode_png(pixels).numpy())
    return np.array(made, object)


def ids(rng, count: int, known: float = 0.98) -> np.ndarray:
    return np.array(
        [(IDS[rng.integers(len(IDS))] if rng.random() < known else "nobody").encode() for _ in range(count)], object
    )


def described(rng, folder: Path) -> dict:
    """What exports of the three tasks would say, as one."""
    vocabulary = folder / "vocabulary.tsv"
    vocabulary.write_text("".join(f"{word}\t1\n" for word in WORDS))
    text = TextAnalysis(("a", "b"), vocabulary)
    ratings = RatingsAnalysis(tuple(IDS), tuple(IDS), (), (), 3.0, 1.0, 5.0)
    image = ImageAnalysis(("a",), (), ())
    found = statistics.features({"text": texts(rng, 500)}, text, Sentiment())
    found |= statistics.features({"user_id": ids(rng, 500), "item_id": ids(rng, 500)}, ratings, Recommendation())
    return found | statistics.features({"image_bytes": images(rng, 300)}, image, Image())


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def monitor(rng, tmp_path):
    aliases = {"t:0": "text", "u:0": "user_id", "i:0": "image_bytes", "p:0": "image", "e:0": "inputs"}
    made = drift.Monitor(described(rng, tmp_path), aliases)
    yield made
    made.close()


def show(monitor: drift.Monitor, tensor: str, rows: np.ndarray) -> None:
    for start in range(0, len(rows), 16):
        monitor.take("model", 3, {tensor: rows[start : start + 16]})


def scores() -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(metrics.text())
    samples = [s for family in families for s in family.samples if s.name == ":minibatch:serving:drift"]
    return {(s.labels["feature"], s.labels["measure"]): s.value for s in samples}


LIKE_THE_EXPORT = {
    "t:0": lambda rng: texts(rng, 600),
    "u:0": lambda rng: ids(rng, 600),
    "i:0": lambda rng: images(rng, 600),
}


@pytest.mark.parametrize("tensor", LIKE_THE_EXPORT)
def test_inputs_like_those_of_the_export_score_under_the_bound(monitor, rng, tensor, caplog):
    show(monitor, tensor, LIKE_THE_EXPORT[tensor](rng))
    assert scores()
    assert max(scores().values()) < drift.BOUND
    assert caplog.text == ""


OTHERS = {
    "longer_texts": ("t:0", lambda rng: texts(rng, 400, length=60), ("text", "words")),
    "new_words": ("t:0", lambda rng: texts(rng, 400, known=0.5), ("text", "unknown")),
    "unknown_users": ("u:0", lambda rng: ids(rng, 400, known=0.5), ("user_id", "unknown")),
    "darker_images": ("i:0", lambda rng: images(rng, 400, brightness=0.2), ("image_bytes", "mean_0")),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_inputs_score_over_the_bound_and_are_logged_once(monitor, rng, case, caplog):
    tensor, made, key = OTHERS[case]
    show(monitor, tensor, made(rng))
    assert scores()[key] > drift.BOUND
    (line,) = [r.getMessage() for r in caplog.records if f"{key[0]} ({key[1]}) drifts" in r.getMessage()]
    assert line.startswith("model/3: ")


def test_inputs_that_come_back_are_told_and_old_ones_fade(monitor, rng, caplog):
    caplog.set_level("INFO", "serving")
    show(monitor, "u:0", ids(rng, 2000, known=0.5))
    show(monitor, "u:0", ids(rng, 5000))
    assert "user_id (unknown) is back" in caplog.text
    assert scores()["user_id", "unknown"] < drift.BOUND / 2


def test_a_few_examples_raise_no_alarm(monitor, rng, caplog):
    show(monitor, "u:0", ids(rng, drift.MIN_EXAMPLES - 1, known=0))
    assert scores()["user_id", "unknown"] > drift.BOUND
    assert caplog.text == ""


def test_pixels_and_examples_are_measured_as_the_encoded_image_and_the_plain_text_are(monitor, rng):
    encoded, sentences = images(rng, 64), texts(rng, 64)
    show(monitor, "i:0", encoded)
    show(monitor, "p:0", np.stack([tf.io.decode_png(image).numpy() for image in encoded]))
    show(monitor, "t:0", sentences)
    found = scores()
    for measure in ("contrast", "mean_0", "mean_1", "mean_2"):
        assert found["image", measure] == found["image_bytes", measure]

    other = drift.Monitor({"text": {"kind": "text", **TEXT}}, {"e:0": "inputs"})
    plain = drift.Monitor({"text": {"kind": "text", **TEXT}}, {"t:0": "text"})
    made = [tf.train.Example() for _ in sentences]
    for example, sentence in zip(made, sentences, strict=True):
        example.features.feature["text"].bytes_list.value.append(sentence)
    show(plain, "t:0", sentences)
    expected = scores()
    show(other, "e:0", np.array([example.SerializeToString() for example in made], object))
    assert scores() == expected
    other.close()
    plain.close()


TEXT = {"known": "", "measures": {"words": {"edges": [10, 20, 30, 40], "shares": [0.2] * 5}}}


def test_nothing_that_a_request_may_hold_harms_the_monitor(monitor):
    odd = [
        np.array([b"\xff", b"", 7, None], object),
        np.zeros((2, 3)),
        np.array(5),
        np.zeros((0,)),
        np.float32([np.nan]),
    ]
    for tensor in ("t:0", "u:0", "i:0", "p:0", "e:0", "unheard:0"):
        for array in odd:
            monitor.take("model", 3, {tensor: array})


def test_requests_are_sampled_by_time_and_never_pile_up(monitor, monkeypatch):
    now, taken, going = [5.0], [], threading.Event()
    monkeypatch.setattr(drift, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monitor.take = lambda *sample: (going.wait(), taken.append(sample))
    going.set()
    for tick in range(3):
        now[0] = 5 + tick * drift._SECONDS_BETWEEN * 1.01
        for _ in range(1000):
            monitor.offer("model", 3, {})
        while len(taken) < tick + 1 or monitor._waiting.qsize():
            time.sleep(0.01)
        assert len(taken) == tick + 1
    going.clear()
    for _ in range(100):
        now[0] += 1
        monitor.offer("model", 3, {})
    going.set()
    monitor.close()
    monitor._thread.join()
    assert len(taken) in (5, 6)  # three, two that waited, and perhaps one that the thread held


def test_an_export_without_statistics_or_with_damaged_ones_has_no_monitor_and_says_so(tmp_path, caplog):
    assert drift.monitor(tmp_path, {}) is None
    (tmp_path / drift.PATH).parent.mkdir()
    for text in ("", "[]", '{"features": {"text": {}}}', '{"features": {"text": {"kind": "text", "measures": 1}}}'):
        (tmp_path / drift.PATH).write_text(text)
        assert drift.monitor(tmp_path, {}) is None
    assert caplog.text.count("no drift monitor") == 5


def test_the_statistics_are_json_that_names_no_one(rng, tmp_path):
    text = json.dumps(described(rng, tmp_path), allow_nan=False)
    assert "u1" not in json.loads(text)["user_id"]
    assert not any(name in text for name in ("word1", "nobody"))


@pytest.mark.parametrize(("flags", "watched"), [(Flags(monitor_drift=True), True), (Flags(), False)])
def test_a_version_is_watched_where_the_flag_asks_for_it(saved_models, tmp_path, rng, flags, watched):
    version = tmp_path / "7"
    shutil.copytree(saved_models / "texts" / "7", version)
    (version / drift.PATH).parent.mkdir()
    (version / drift.PATH).write_text(json.dumps({"features": {"text": described(rng, tmp_path)["text"]}}))
    servable = Loader(flags, BatchingParameters())(version)
    assert (servable.monitor is not None) == watched
    servable.close()


def test_what_a_server_answers_is_shown_to_the_monitor_of_the_version(rest, rng, tmp_path):
    with rest.models.lease("texts") as (_, servable):
        feed = servable.signatures["serving_default"].inputs["text"].name
        servable.monitor = drift.Monitor({"text": described(rng, tmp_path)["text"]}, {feed: "text"})
        try:
            rest.post("/v1/models/texts:predict", '{"instances": ["some words", "more of them"]}')
            servable.monitor.close()
            servable.monitor._thread.join()
        finally:
            servable.monitor = None
    labels = 'model_name="texts",version="7",feature="text"'
    assert f":minibatch:serving:drift_examples{{{labels}}} 2\n" in metrics.text()
