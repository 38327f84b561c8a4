"""What a task must say about itself; the pipeline knows nothing else about images, texts or ratings.

raw features --inputs--> tensors --augment (training only)--> tensors --build's model--> outputs --loss--> [batch]
raw features --serve's signatures (inputs and model inside)--> what a client reads
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import keras
import tensorflow as tf

Opt = TypeVar("Opt")
"""The task's options, of models/options.py."""
Ana = TypeVar("Ana")
"""The task's analysis, of models/analysis.py."""
Features = dict[str, tf.Tensor]
"""A batch of record features, one tensor [batch] each (pipeline/records.py)."""
Tensors = dict[str, Any]
"""Model inputs by name: dense tensors [batch, ...] or ragged ones [batch, None]."""


@dataclass(frozen=True)
class ModelSpec(Generic[Opt, Ana]):
    """One task. Adding a task is writing these functions and one line in `spec_of`."""

    inputs: Callable[[Opt, Ana], tf.Module]
    """A module whose call turns raw features into model inputs. It holds the tables that the corpus gave, so that an
    export carries them. Deterministic and independent of the epoch: training calls it once a run and keeps the
    result."""
    target: Callable[[Features, Ana], tf.Tensor]
    """Raw features -> what the model should say, [batch]."""
    build: Callable[[Opt, Ana], keras.Model]
    """An untrained model from the inputs' tensors to outputs."""
    loss: Callable[[tf.Tensor, Any, Opt], tf.Tensor]
    """Target and model outputs -> loss of each example, [batch], in `full_precision()`. Weight penalties are in
    model.losses."""
    serve: Callable[[keras.Model, Opt, Ana], tf.Module]
    """The module to export: its attribute `functions` maps a signature name to a tf.function on raw inputs."""
    monitor: str
    """The validation metric that early stopping and the choice of the best checkpoint look at."""
    lower_is_better: bool = False
    draws: int = 0
    """Uniform random numbers that `augment` needs for each example."""
    augment: Callable[[Tensors, tf.Tensor, Opt], Tensors] | None = None
    """Inputs and draws [batch, draws] in [0, 1) -> inputs."""


def spec_of(task: str) -> ModelSpec[Any, Any]:
    """The spec of "image", "sentiment" or "recommendation"."""
    from models import image, recommendation, sentiment

    specs: dict[str, ModelSpec[Any, Any]] = {
        "image": image.SPEC,
        "sentiment": sentiment.SPEC,
        "recommendation": recommendation.SPEC,
    }
    return specs[task]


def full_precision() -> str:
    """The dtype of logits, ratings and losses, whatever the layers before them compute in: float64 under that policy,
    else float32."""
    return "float64" if keras.config.dtype_policy().compute_dtype == "float64" else "float32"


def lookup_table(keys: tuple[str, ...], default: int) -> tf.lookup.StaticHashTable:
    """String -> its place in `keys`, `default` for any other."""
    initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(keys, tf.string), tf.range(len(keys), dtype=tf.int32))
    return tf.lookup.StaticHashTable(initializer, default)


def class_index(labels: tf.Tensor, classes: tuple[str, ...]) -> tf.Tensor:
    """Class names [batch] -> their places in `classes` [batch] int32; -1 for a name that is none of them."""
    matches = tf.equal(labels[:, None], tf.constant(classes)[None, :])  # [batch, classes]
    found = tf.argmax(tf.cast(matches, tf.int32), axis=1, output_type=tf.int32)  # [batch]
    return tf.where(tf.reduce_any(matches, axis=1), found, -1)


def saved_variables(model: keras.Model) -> list[tf.Variable]:
    """The variables for a module to hold instead of the Keras model. With the model itself a SavedModel gets every
    variable twice, and only TensorFlow's Python loader fills those that the signatures read; TF Serving's does not."""
    return [variable.value for variable in model.variables]
