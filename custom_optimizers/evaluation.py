"""The weights to evaluate, checkpoint and export, where they are not those that gradients are taken at."""

import contextlib

import keras
from keras import ops


def evaluation_weights(optimizer, model) -> list:
    """One tensor for each of model.trainable_variables: Schedule-Free's x, an average, Lookahead's slow weights.

    The weights themselves for an optimizer that makes no difference, and before the first update. Takes Keras' own
    optimizers too (use_ema), and one inside a LossScaleOptimizer.
    """
    optimizer = _rule(optimizer)
    variables = list(model.trainable_variables)
    if hasattr(optimizer, "evaluation_values"):
        return optimizer.evaluation_values(variables)
    if getattr(optimizer, "use_ema", False) and optimizer.built and int(ops.convert_to_numpy(optimizer.iterations)):
        averages = optimizer._model_variables_moving_average
        places = [optimizer._get_variable_index(variable) for variable in variables]
        pairs = [(averages[place], variable) for place, variable in zip(places, variables, strict=True)]
        return [ops.convert_to_tensor(variable if a is None else a) for a, variable in pairs]
    return [ops.convert_to_tensor(variable) for variable in variables]


@contextlib.contextmanager
def evaluating(optimizer, model, batches=None):
    """Inside, the model holds its evaluation weights; after it, exactly what it held before.

    `batches`, an iterable of inputs as the model takes them, re-estimates the statistics of batch normalization, which
    belong to the weights that gradients are taken at: give some tens of training batches where the model has any.
    """
    kept = _enter(optimizer, model, batches)
    try:
        yield
    finally:
        _leave(kept)


def _enter(optimizer, model, batches) -> list:
    """Puts the evaluation weights into the model; returns (variable, value) pairs that undo it."""
    variables = [*model.variables, *getattr(_rule(optimizer), "marks", [])]
    kept = [(variable, ops.copy(ops.convert_to_tensor(variable))) for variable in variables]
    values = evaluation_weights(optimizer, model)
    for variable, value in zip(model.trainable_variables, values, strict=True):
        variable.assign(value)
    for mark in getattr(_rule(optimizer), "marks", []):
        mark.assign(ops.ones_like(mark))
    if batches is not None:
        recompute_statistics(model, batches)
    return kept


def _leave(kept: list) -> None:
    for variable, value in kept:
        variable.assign(value)


def _rule(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)  # a LossScaleOptimizer holds the rule


def recompute_statistics(model, batches) -> None:
    """Sets every moving mean and variance to the plain mean over the batches, of what each batch has of it."""
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "moving_variance")]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    normalizing = {id(v) for layer in layers for v in (layer.moving_mean, layer.moving_variance)}
    others = [v for v in model.non_trainable_variables if id(v) not in normalizing]  # seeds of dropout, say
    kept = [ops.copy(ops.convert_to_tensor(variable)) for variable in others]
    try:
        for count, inputs in enumerate(batches):
            for layer in layers:
                layer.momentum = count / (count + 1)
            model(inputs, training=True)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for variable, value in zip(others, kept, strict=True):
            variable.assign(value)


class EvaluationWeights(keras.callbacks.Callback):
    """Validates, and saves in callbacks that come after it, at the evaluation weights; trains on at the others.

    `batches`: see `evaluating`. After fit the evaluation weights stay in the model, as Keras does with averages.
    """

    def __init__(self, batches=None):
        super().__init__()
        self.batches = batches
        self._kept = None
        self._fitting = False

    def on_train_begin(self, logs=None):
        self._fitting = True

    def on_test_begin(self, logs=None):
        if self._kept is None:
            self._kept = _enter(self.model.optimizer, self.model, self.batches)

    def on_epoch_end(self, epoch, logs=None):
        self.on_test_begin()  # for callbacks that save

    def on_epoch_begin(self, epoch, logs=None):
        self._resume()

    def on_train_batch_begin(self, batch, logs=None):
        self._resume()  # validation was inside an epoch

    def on_train_end(self, logs=None):
        self._kept, self._fitting = None, False  # fit has put the evaluation weights there for good
        if self.batches is not None:
            recompute_statistics(self.model, self.batches)

    def on_test_end(self, logs=None):
        if not self._fitting:
            self._resume()

    def _resume(self):
        if self._kept is not None:
            _leave(self._kept)
            self._kept = None
