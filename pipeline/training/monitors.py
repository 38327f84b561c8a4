"""What shows whether a net learns: the size of an update, the gradient of each layer, units that are never active.

Looked at once an epoch, on a small batch, outside the compiled loop; nothing that training depends on is changed.

    update_to_weight      |w after - w before| / |w before| over all trainable weights, in one update
    gradient/<layer>      |g| / |w| over the trainable weights of the layer, unclipped and without weight penalties;
                          w counts as SMALL at least, for layers that start at 0
    dead_units            share of the units of all ReLU activations that are 0 for every example of the batch
    dead_units/<layer>    the same of one layer
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from models.spec import ModelSpec
from pipeline.config import Config
from pipeline.training import determinism

EXAMPLES = 32  # rows of the batch that are looked at: gradients are compared by orders of magnitude
RECTIFIED = ("relu", "relu6")  # activations that are exactly 0 on one side, and pass no gradient there
SMALL = 1e-3  # of weights, as a root of the mean square
_SCALE = 1024.0  # keeps small gradients from vanishing in float16; a power of two rounds nothing


class Monitor:
    """Reads `model` at the end of an epoch; `inputs` and `target` are a batch of training rows as they are.

    Works for every Keras model whose outputs `spec.loss` takes. Under a strategy it is used in cross-replica context
    and looks at the first replica's copy of the weights.
    """

    def __init__(self, model: keras.Model, spec: ModelSpec, config: Config, inputs: dict[str, Any], target: Any):
        self._model, self._spec, self._options = model, spec, config.model
        self._inputs = {name: tf.convert_to_tensor(value[:EXAMPLES]) for name, value in inputs.items()}
        self._target = tf.convert_to_tensor(target[:EXAMPLES])
        self._weights = [_first_copy(variable) for variable in model.trainable_variables]
        self._before: list[np.ndarray] = []
        self._look = tf.function(self._differentiate, jit_compile=False)

    def watch(self) -> None:
        """Remembers the weights; called right before the last update of an epoch."""
        self._before = [weight.numpy() for weight in self._weights]

    def read(self) -> dict[str, float]:
        """The values named above; called right after that update. update_to_weight is absent without `watch`, a layer's
        gradient where the loss does not depend on it, dead_units where there is no ReLU."""
        gradients, active = self._look(self._inputs, self._target)
        return {**self._update(), **self._gradients(gradients), **_dead(active)}

    def _update(self) -> dict[str, float]:
        before, self._before = self._before, []
        size = math.hypot(*map(_norm, before))
        moved = math.hypot(*(_norm(w.numpy() - old) for w, old in zip(self._weights, before, strict=False)))
        return {"update_to_weight": moved / size} if size else {}

    def _differentiate(self, inputs: dict[str, Any], target: tf.Tensor) -> tuple[list, dict[str, list]]:
        """The gradient of the scaled mean loss by each weight, and which units are active, by layer."""
        active: dict[str, list] = {}
        with determinism.sums_in_pairs():
            with tf.GradientTape() as tape, _recording(self._model, active):
                outputs = self._model(inputs, training=False)
                loss = tf.reduce_mean(self._spec.loss(target, outputs, self._options)) * _SCALE
            return tape.gradient(loss, self._weights), active

    def _gradients(self, gradients: list) -> dict[str, float]:
        layers: dict[str, tuple[float, float, int]] = {}
        for variable, weight, gradient in zip(self._model.trainable_variables, self._weights, gradients, strict=True):
            if gradient is None:
                continue
            if isinstance(gradient, tf.IndexedSlices):  # of a table, only the rows that the batch reads are compared
                rows, places = tf.unique(gradient.indices)
                gradient = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(rows))
                weight = tf.gather(weight, rows)
            layer = variable.path.rpartition("/")[0] or variable.path
            g, w, count = layers.get(layer, (0.0, 0.0, 0))
            g, w = math.hypot(g, _norm(gradient) / _SCALE), math.hypot(w, _norm(weight))
            layers[layer] = g, w, count + math.prod(weight.shape)
        return {f"gradient/{layer}": g / max(w, SMALL * math.sqrt(count)) for layer, (g, w, count) in layers.items()}


def _first_copy(variable: keras.Variable) -> tf.Variable:
    """Of a variable with a copy on each replica, the one on the first."""
    return getattr(variable.value, "values", [variable.value])[0]


def _norm(values: Any) -> float:
    """sqrt(sum x^2), summed in float64: squares of small gradients are no float32."""
    return math.sqrt(np.sum(np.square(np.asarray(values), dtype=np.float64)))


@contextlib.contextmanager
def _recording(model: keras.Model, active: dict[str, list]) -> Iterator[None]:
    """While inside, each call of a ReLU of the model adds where it is active, [units] bool, to `active` by its name."""
    layers = {id(op): op for op in _operations(model) if _rectifies(op)}.values()
    for layer in layers:
        vars(layer)["call"] = _recorded(layer, active)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["call"]


def _operations(model: Any) -> Iterator[keras.Operation]:
    """Layers and other operations, those of models within the model included."""
    for operation in getattr(model, "operations", None) or model.layers:
        yield operation
        if isinstance(operation, keras.Model):
            yield from _operations(operation)


def _rectifies(operation: keras.Operation) -> bool:
    if isinstance(operation, keras.layers.ReLU):
        return not operation.negative_slope and not operation.threshold
    name = getattr(getattr(operation, "activation", None), "__name__", type(operation).__name__.lower())
    return name in RECTIFIED


def _recorded(layer: keras.Operation, active: dict[str, list]) -> Any:
    call = layer.call
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else -1

    def recorded(*args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        others = [i for i in range(len(output.shape)) if i != axis % len(output.shape)]
        active.setdefault(layer.name, []).append(tf.reduce_any(output != 0, others))
        return output

    return recorded


def _dead(active: dict[str, list]) -> dict[str, float]:
    """A unit of a layer that is called several times is dead where it is in every call."""
    dead = {name: ~np.any(np.stack(calls), axis=0) for name, calls in active.items()}  # [units] each
    if not dead:
        return {}
    shares = {f"dead_units/{name}": float(np.mean(units)) for name, units in dead.items()}
    return {"dead_units": float(np.mean(np.concatenate(list(dead.values())))), **shares}
