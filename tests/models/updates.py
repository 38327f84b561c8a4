"""Updates as the training loop makes them, in few lines: what the tests of models run on replicas and under XLA."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from models import noise
from models.analysis import Analysis, ImageAnalysis, RatingsAnalysis, TextAnalysis
from models.options import Image, Options, Recommendation, Sentiment
from models.spec import spec_of

BATCH, CLASSES, WORDS, USERS, ITEMS = 8, 3, 20, 12, 10
SMALL: dict[str, Options] = {
    "image": Image(
        height=8, width=8, stem=4, filters=(4, 8), convolutions=1, pool="first", dropout=0.3, l2=1e-3, flip=True, crop=1
    ),
    "sentiment": Sentiment(
        vocabulary_size=WORDS,
        max_tokens=7,
        embedding=8,
        units=4,
        max_pooling=True,
        dropout=0.3,
        word_dropout=0.2,
        bigrams=50,
        l2=1e-3,
    ),
    "recommendation": Recommendation(factors=3, members=2),
}


@contextlib.contextmanager
def policy(name: str):
    """Models built inside compute in this dtype policy."""
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy(name)
    keras.config.set_floatx("float64" if name == "float64" else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_floatx(before[1])


def analysis_of(options: Options) -> Analysis:
    if isinstance(options, Image):
        classes = tuple(f"class {i}" for i in range(CLASSES))
        channels = options.channels
        return ImageAnalysis(classes, (0.47,) * channels, (0.08,) * channels)
    if isinstance(options, Sentiment):
        vocabulary = Path(tempfile.gettempdir()) / "is not read: tokens are given"
        return TextAnalysis(("neg", "pos"), vocabulary)
    users, items = ([f"{kind}{i}" for i in range(count)] for kind, count in (("u", USERS), ("i", ITEMS)))
    return RatingsAnalysis(tuple(users), tuple(items), (1,) * USERS, ((),) * USERS, 3.1, 1.0, 5.0)


def batch_of(options: Options, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs, prepared and padded, and targets: other ones for each seed."""
    random = np.random.default_rng(seed)
    if isinstance(options, Image):
        shape = (BATCH, options.height, options.width, options.channels)
        return {"image": random.integers(0, 256, shape, np.uint8)}, random.integers(0, CLASSES, BATCH, np.int32)
    if isinstance(options, Sentiment):
        lengths = random.integers(1, options.max_tokens + 1, BATCH)
        tokens = random.integers(1, min(options.vocabulary_size, WORDS), (BATCH, options.max_tokens), np.int32)
        tokens[np.arange(options.max_tokens) >= lengths[:, None]] = 0
        return {"tokens": tokens}, random.integers(0, 2, BATCH, np.int32)
    ids = {
        "user": random.integers(0, USERS + 1, BATCH, np.int32),
        "item": random.integers(0, ITEMS + 1, BATCH, np.int32),
    }
    return ids, random.integers(1, 6, BATCH).astype(np.float32)


@dataclasses.dataclass
class Training:
    """A model in training: in a replica, the `gradients` of its share of a batch and one `update` by those of all."""

    options: Options
    rule: Callable[[], keras.optimizers.Optimizer]
    strategy: tf.distribute.Strategy = dataclasses.field(default_factory=tf.distribute.get_strategy)
    seed: int = 5

    def __post_init__(self):
        self.spec, self.share = spec_of(self.options.task), BATCH // self.strategy.num_replicas_in_sync
        keras.utils.set_random_seed(self.seed)
        with self.strategy.scope():
            self.model = self.spec.build(self.options, analysis_of(self.options))
            self.optimizer = self.rule()
            self.optimizer.build(self.model.trainable_variables)

    def gradients(self, inputs, target, step) -> tuple[tf.Tensor, list]:
        """This replica's part of the mean loss and of its gradient."""
        first = tf.distribute.get_replica_context().replica_id_in_sync_group * self.share
        with tf.GradientTape() as tape, noise.drawn(self.seed, step, first):
            losses = self.spec.loss(target, self.model(inputs, training=True), self.options)
            loss = tf.reduce_sum(losses) / BATCH
            if self.model.losses:
                loss += tf.add_n(self.model.losses) / self.strategy.num_replicas_in_sync
        return loss, tape.gradient(loss, self.model.trainable_variables)

    def update(self, inputs, target, examples, step) -> tf.Tensor:
        if self.spec.augment:
            draws = noise.rows(self.seed, step, examples, self.spec.draws)
            inputs = self.spec.augment(inputs, draws, self.options)
        loss, gradients = self.gradients(inputs, target, step)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return loss

    def arguments(self, step: int):
        """What `update` takes in the update number `step`, each replica its share."""
        inputs, target = batch_of(self.options, step)
        examples = np.random.default_rng(step).permutation(100)[:BATCH]

        def part(context, array):
            start = context.replica_id_in_sync_group * self.share
            return tf.constant(array[start : start + self.share])

        def shared(array):
            if self.strategy.num_replicas_in_sync == 1:
                return tf.constant(array)
            return self.strategy.experimental_distribute_values_from_function(lambda context: part(context, array))

        return (*tf.nest.map_structure(shared, (inputs, target, examples)), tf.constant(step, tf.int64))

    def run(self, steps: int) -> list[float]:
        """Makes the updates and returns their losses."""
        update = tf.function(lambda *arguments: self.strategy.run(self.update, arguments), autograph=False)
        losses = []
        for step in range(steps):
            loss = update(*self.arguments(step))
            losses.append(float(self.strategy.reduce("SUM", loss, axis=None)))
        return losses

    def values(self) -> list[np.ndarray]:
        """Weights and statistics after the updates so far, seeds aside."""
        values = [variable.numpy() for variable in self.model.variables]
        return [value for value in values if value.dtype.kind == "f"]
