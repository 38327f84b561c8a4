"""The SavedModels that are served here, drawn at random at the sizes of the presets."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from models import recommendation
from models.analysis import RatingsAnalysis
from models.options import Recommendation

USERS, ITEMS, FACTORS, SEEN = 943, 1682, 16, 106  # MovieLens 100K, and its ratings a user
MEAN, LOWEST, HIGHEST = 3.5, 1.0, 5.0


def ratings(root: Path, pairs: int = 256) -> tuple[list[tuple[str, str]], list[float]]:
    """Writes <root>/ratings/1, as the project exports it, and <root>/ratings.keras, the same in Keras' own layers
    (users and items by their row). Returns pairs (user id, item id) and the ratings that are right for them."""
    random = np.random.default_rng(0)
    users, items = (tuple(str(n) for n in range(1, count + 1)) for count in (USERS, ITEMS))
    seen = tuple(tuple(items[i] for i in np.sort(random.choice(ITEMS, SEEN, replace=False))) for _ in users)
    analysis = RatingsAnalysis(users, items, (SEEN,) * USERS, (60,) * ITEMS, seen, MEAN, LOWEST, HIGHEST)
    options = Recommendation(factors=FACTORS)
    model = recommendation.build(options, analysis)
    tables = [random.normal(0, 0.3, (count + 1, FACTORS + 1)).astype(np.float32) for count in (USERS, ITEMS)]
    for rows in tables:
        rows[0] = 0
    model.set_weights(tables)
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
