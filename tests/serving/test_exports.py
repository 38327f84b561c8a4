"""The signatures that this project exports, untrained, by every method of both front ends."""

from base64 import b64encode
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, regression_pb2

from models.analysis import load
from models.spec import spec_of
from pipeline import records
from serving.server import classification, regression
from tests import tiny
from tests.serving.asgi import Rest


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """The three tasks as models, and two rows of each task's data."""
    root = tmp_path_factory.mktemp("exports")
    for task in tiny.TASKS:
        directory = tiny.records_dir(task, root / "records")
        options, analysis = tiny.config(task, root).model, load(directory, task)
        module = spec_of(task).serve(spec_of(task).build(options, analysis), options, analysis)
        tf.saved_model.save(module, str(root / "models" / task / "1"), signatures=dict(module.functions))
    application = Rest((root / "models").iterdir())
    yield application
    application.close()


def rows(task: str) -> list[dict]:
    return tiny.rows(task, "test")[:2]


def json_text(value: str | bytes) -> str:
    return f'{{"b64": "{b64encode(value).decode()}"}}' if isinstance(value, bytes) else f'"{value}"'


def example_json(task: str, *features: str) -> str:
    texts = [", ".join(f'"{name}": {json_text(row[name])}' for name in features) for row in rows(task)]
    return ", ".join(f"{{{text}}}" for text in texts)


def computed(exports: Rest, task: str, read, request) -> object:
    """The answer of a method on a message, as gRPC gives it."""
    with exports.models.lease(task) as (_, servable):
        call = partial(read, servable)(request)
        return call.write(servable.run(call.feeds, call.fetches))


@pytest.mark.parametrize(("task", "feature"), [("image", "image_bytes"), ("sentiment", "text")])
def test_classify_says_of_examples_what_predict_says_of_their_features(exports, task, feature):
    instances = ", ".join(json_text(row[feature]) for row in rows(task))
    _, predicted = exports.post(f"/v1/models/{task}:predict", f'{{"instances": [{instances}]}}')
    body = f'{{"signature_name": "classify", "examples": [{example_json(task, feature)}]}}'
    status, classified = exports.post(f"/v1/models/{task}:classify", body)
    assert status == 200
    request = classification_pb2.ClassificationRequest(model_spec={"signature_name": "classify"})
    for row in rows(task):
        request.input.example_list.examples.add().ParseFromString(records.encode(row, task))
    message = computed(exports, task, classification.read, request).result
    for answer, pairs, sent in zip(
        predicted["predictions"], classified["results"], message.classifications, strict=True
    ):
        best = max(pairs, key=lambda pair: pair[1])
        assert best[0] == answer["label"]
        assert [c.label for c in sent.classes] == [label for label, _ in pairs]
        np.testing.assert_allclose([c.score for c in sent.classes], [score for _, score in pairs], rtol=1e-6)


def test_regress_says_of_examples_what_predict_says_of_their_features(exports):
    task = "recommendation"
    features = example_json(task, "user_id", "item_id")
    _, predicted = exports.post(f"/v1/models/{task}:predict", f'{{"instances": [{features}]}}')
    body = f'{{"signature_name": "regress", "examples": [{features}]}}'
    status, regressed = exports.post(f"/v1/models/{task}:regress", body)
    assert (status, regressed["results"]) == (200, predicted["predictions"])
    request = regression_pb2.RegressionRequest(model_spec={"signature_name": "regress"})
    for row in rows(task):
        request.input.example_list.examples.add().ParseFromString(records.encode(row, task))
    message = computed(exports, task, regression.read, request).result
    np.testing.assert_allclose([r.value for r in message.regressions], regressed["results"], rtol=1e-6)
