"""The SavedModels that are served here, drawn at random at the sizes of the presets."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from models import image, recommendation
from models.analysis import ImageAnalysis, RatingsAnalysis
from models.options import Image, Recommendation

USERS, ITEMS, FACTORS, SEEN = 943, 1682, 16, 106  # MovieLens 100K, and its ratings a user
MEAN, LOWEST, HIGHEST = 3.5, 1.0, 5.0


def ratings(root: Path, pairs: int = 256) -> tuple[list[tuple[str, str]], list[float]]:
    """Writes <root>/ratings/1, as the project exports it, and <root>/ratings.keras, the same in Keras' own layers
    (users and items by their row). Returns pairs (user id, item id) and the ratings that are right for them."""
    random = np.random.default_rng(0)
    users, items = (tuple(str(n) for n in range(1, count + 1)) for count in (USERS, ITEMS))
    seen = tuple(tuple(items[i] for i in np.sort(random.choice(ITEMS, SEEN, replace=False))) for _ in users)
    analysis = RatingsAnalysis(users, items, (SEEN,) * USERS, seen, MEAN, LOWEST, HIGHEST)
    options = Recommendation(factors=FACTORS)
    model = recommendation.build(options, analysis)
    tables = [random.normal(0, 0.3, (count + 1, FACTORS + 1)).astype(np.float32) for count in (USERS, ITEMS)]
    for rows in tables:
        rows[0] = 0
    model.set_weights([np.concatenate(tables)])  # one table: users, then items
    serving = recommendation.Serving(model, options, analysis)
    tf.saved_model.save(serving, str(root / "ratings" / "1"), signatures=dict(serving.functions))
    _in_keras(tables).save(root / "ratings.keras")
    asked = [random.choice(ids, pairs).tolist() for ids in (users, items)]
    answers = serving.functions["serving_default"](*map(tf.constant, asked))
    return list(zip(*asked, strict=True)), answers["rating"].numpy().tolist()


def _in_keras(tables: list[np.ndarray]) -> keras.Model:
    ids = {name: keras.Input([], dtype="int32", name=name) for name in ("user", "item")}
    layers = [keras.layers.Embedding(*rows.shape) for rows in tables]
    rows = [layer(each) for layer, each in zip(layers, ids.values(), strict=True)]
    (p, b), (q, c) = ((row[:, :FACTORS], row[:, FACTORS:]) for row in rows)
    rating = keras.ops.clip(MEAN + b + c + keras.layers.Dot(axes=1)([p, q]), LOWEST, HIGHEST)
    model = keras.Model(ids, rating)
    for layer, rows in zip(layers, tables, strict=True):
        layer.set_weights([rows])
    return model


def images(path: Path, options: Image, count: int = 64) -> tuple[list[bytes], list[list[float]]]:
    """Writes the network to `path` as the project exports it. Returns JPEG files of the size that it takes, and the
    scores that are right for them."""
    analysis = ImageAnalysis(tuple(map(str, range(10))), (0.5,) * 3, (0.06,) * 3)
    keras.utils.set_random_seed(0)
    serving = image.Serving(image.build(options, analysis), options, analysis)
    tf.saved_model.save(serving, str(path), signatures=dict(serving.functions))
    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3))
    smooth = tf.image.resize(coarse, (options.height, options.width), "bicubic")
    files = [tf.io.encode_jpeg(tf.cast(tf.clip_by_value(one, 0, 255), tf.uint8)).numpy() for one in smooth]
    return files, serving.functions["serving_default"](tf.constant(files))["scores"].numpy().tolist()


def slow(root: Path, loops: int) -> None:
    """Writes <root>/slow/1: `y` is twice `x` [examples], after `loops` products of matrices for each example, so that
    a batch takes as long as its examples one by one."""
    side = 192

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def serving_default(x):
        matrix = tf.eye(side) * 0.5
        work = tf.fill([1, side, side], 1.0) * x[:, None, None]  # [examples, side, side]
        for _ in tf.range(loops):
            work = tf.matmul(work, tf.broadcast_to(matrix, tf.shape(work)))
        return {"y": 2 * x + 1e-30 * tf.reduce_mean(work, axis=[1, 2])}

    module = tf.Module()
    module.serving_default = serving_default
    tf.saved_model.save(module, str(root / "slow" / "1"), signatures={"serving_default": serving_default})


def numbered(path: Path, version: int, mebibytes: int = 16) -> None:
    """Writes to `path` a model that says which version it is: `version` for each `x` [rows], and `sum`, x + version.
    Its weights take `mebibytes`, so that one that is not given back shows."""
    module = tf.Module()
    module.weights = tf.Variable(tf.fill([mebibytes, 2**18], float(version)))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def serving_default(x):
        number = tf.gather(module.weights[0], tf.zeros_like(x, tf.int32))  # [rows]
        return {"version": number, "sum": x + module.weights[-1, -1]}

    module.serving_default = serving_default
    tf.saved_model.save(module, str(path), signatures={"serving_default": serving_default})
