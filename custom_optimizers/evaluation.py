"""The weights to evaluate, checkpoint and export, where they are not those that gradients are taken at."""

import contextlib

import keras
from keras import ops

from custom_optimizers import sparse


def evaluation_weights(optimizer, model) -> list:
    """One tensor for each of model.trainable_variables: Schedule-Free's x, an average, Lookahead's slow weights.

    The weights themselves for an optimizer that makes no difference, and before the first update. Takes Keras' own
    optimizers too (use_ema), and one inside a LossScaleOptimizer.
    """
    optimizer = _rule(optimizer)
    variables = list(model.trainable_variables)
    if hasattr(optimizer, "evaluation_values"):
        return optimizer.evaluation_values(variables)
    if getattr(optimizer, "use_ema", False) and optimizer.built and int(sparse.read(optimizer.iterations)):
        averages = optimizer._model_variables_moving_average
        places = [optimizer._get_variable_index(variable) for variable in variables]
        pairs = [(averages[place], variable) for place, variable in zip(places, variables, strict=True)]
        return [sparse.read(variable if a is None else a) for a, variable in pairs]
    return [sparse.read(variable) for variable in variables]


@contextlib.contextmanager
def evaluating(optimizer, model, batches=None):
    """Inside, the model holds its evaluation weights; after it, exactly the weights that it held before.

    `batches`, an iterable of inputs as the model takes them, re-estimates the statistics of batch normalization, which
    belong to the weights that gradients are taken at: give some tens of training batches where the model has any. Those
    statistics are put back too. Nothing else is: seeds of dropout and counters stand where the use of the model left
    them. Raises ValueError for `batches` that hold none.
    """
    kept = _enter(optimizer, model, batches)
    try:
        yield
    finally:
        _leave(kept)


def _enter(optimizer, model, batches) -> list:
    """Puts the evaluation weights into the model; returns (variable, value) pairs that undo it."""
    variables, marks = list(model.trainable_variables), getattr(_rule(optimizer), "marks", [])
    statistics = [variable for layer in _normalizing(model) for variable in layer.non_trainable_variables]
    written = [*variables, *marks, *(statistics if batches is not None else [])]
    kept = [(variable, _snapshot(variable)) for variable in written]
    try:
        for variable, value in zip(variables, evaluation_weights(optimizer, model), strict=True):
            variable.assign(ops.copy(value))  # a copy: JAX gives the buffers of a model away when it trains
        for mark in marks:
            mark.assign(1.0)
        if batches is not None:
            recompute_statistics(model, batches)
    except BaseException:
        _leave(kept)
        raise
    return kept


def _leave(kept: list) -> None:
    for variable, value in kept:
        variable.assign(value)


def _to_training(optimizer, model) -> None:
    """Where the model holds its evaluation weights, since its last fit or since it was loaded: the others again."""
    rule, variables = _rule(optimizer), model.trainable_variables
    if not any(float(sparse.read(mark)) for mark in getattr(rule, "marks", [])):
        return
    for variable in variables:
        state = rule._state.slots[rule._get_variable_index(variable)]
        slots = {name: sparse.read(slot) for name, slot in state.items()}
        weight = ops.cast(sparse.read(variable), next(iter(slots.values())).dtype)  # half precision: in float32
        variable.assign(ops.cast(rule.training(weight, slots), variable.dtype))
    for mark in rule.marks:
        mark.assign(0.0)


def _snapshot(variable):
    return ops.copy(sparse.read(variable))


def _rule(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)  # a LossScaleOptimizer holds the rule


def _normalizing(model) -> list:
    return [layer for layer in model._flatten_layers() if hasattr(layer, "moving_variance")]


def recompute_statistics(model, batches) -> None:
    """Sets every moving mean and variance to the plain mean over the batches, of what each batch has of it.

    Layers that are not trainable keep theirs. Raises ValueError if `batches` hold none.
    """
    layers = _normalizing(model)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    statistics = {id(variable) for layer in layers for variable in layer.non_trainable_variables}
    others = [v for v in model.non_trainable_variables if id(v) not in statistics]  # seeds of dropout, say
    kept = [(variable, _snapshot(variable)) for variable in others]
    count = 0
    try:
        for inputs in batches:
            for layer in layers:
                layer.momentum = count / (count + 1)
            model(inputs, training=True)
            count += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        _leave(kept)
    if not count:
        raise ValueError("batches must hold at least one; an iterator holds them once only, so give a list or dataset.")


class EvaluationWeights(keras.callbacks.Callback):
    """Validates, and saves in callbacks that come after it, at the evaluation weights; trains on at the others.

    Put it first. Training goes on as it would without it, bit for bit. A checkpoint saved after it at the end of an
    epoch holds the evaluation weights, and of Schedule-Free a mark for the optimizer, which goes back to the others
    when the loaded model is trained on; of other averages training would go on from the average. One saved within an
    epoch holds the weights of training. At the end of fit the evaluation
    weights stay in the model, as Keras does with averages. `batches`: see `evaluating`; they are read once an epoch.
    """

    def __init__(self, batches=None):
        super().__init__()
        self.batches = batches
        self._kept = None
        self._fitting = False

    def on_train_begin(self, logs=None):
        self._fitting = True
        if self._kept is None:
            _to_training(self.model.optimizer, self.model)

    def on_epoch_begin(self, epoch, logs=None):
        self._resume()

    def on_test_begin(self, logs=None):
        self._enter()

    def on_test_end(self, logs=None):
        if not self._fitting:  # in fit they stay for the callbacks of this epoch's end
            self._resume()

    def on_epoch_end(self, epoch, logs=None):
        self._enter()

    def on_train_end(self, logs=None):
        self._kept, self._fitting = None, False

    def _enter(self):
        if self._kept is None:
            self._kept = _enter(self.model.optimizer, self.model, self.batches)

    def _resume(self):
        if self._kept is not None:
            _leave(self._kept)
            self._kept = None
