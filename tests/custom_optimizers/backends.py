"""What the tests of the JAX backend run on both backends: the same weights, the same data, the same updates.

    KERAS_BACKEND=jax python -m tests.custom_optimizers.backends RESULT [NAME ...]

runs every optimizer (or those named) on JAX and writes to the file RESULT, as JSON, the weights that each ends with, or
its error.
"""

import json
import sys
import traceback

import custom_optimizers as suite

TENSORFLOW_CAME_ALONG = "tensorflow" in sys.modules

import keras  # noqa: E402
import numpy as np  # noqa: E402

from tests.custom_optimizers.suite import CASES  # noqa: E402

UPDATES, BATCH = 6, 8
SOURCE = np.random.default_rng(0)
X = SOURCE.normal(size=(UPDATES * BATCH, 3, 3, 1), scale=0.5).astype("float32")
Y = SOURCE.normal(size=(UPDATES * BATCH, 2)).astype("float32")
IDS = SOURCE.integers(0, 5, (UPDATES * BATCH, 3)).astype("int32")

CALM = {"Adagrad": 0.1, "RowWiseAdagrad": 0.1}  # at the rate of the other tests they overshoot here, and rounding grows
WINDOW = {"gradient_accumulation_steps": 2}
AVERAGE = {"use_ema": True, "ema_momentum": 0.7, "ema_overwrite_frequency": 2}
OPTIONS = {
    **{case.name: (case, {}) for case in CASES if case.jax},
    **{
        f"{case.name} with {', '.join(options)}": (case, options)
        for case in CASES
        for options in (WINDOW, AVERAGE, {**WINDOW, **AVERAGE, "global_clipnorm": 0.5})
        if case.name in ("Adam", "ScheduleFreeSGD", "LazyAdam")
    },
}


def new(name: str):
    case, options = OPTIONS[name]
    optimizer = case.make(**options)
    if name in CALM:
        optimizer.learning_rate = CALM[name]
    return optimizer


def images() -> keras.Model:
    layers = [keras.layers.Conv2D(3, 2, name="conv"), keras.layers.Flatten(), keras.layers.Dense(2, "tanh", name="top")]
    return started(keras.Sequential([keras.Input((3, 3, 1)), *layers]))


def table() -> keras.Model:
    layers = [suite.SparseEmbedding(5, 2), keras.layers.Flatten(), keras.layers.Dense(2, name="top")]
    return started(keras.Sequential([keras.Input((3,), dtype="int32"), *layers]))


def started(model: keras.Model) -> keras.Model:
    source = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(source.normal(size=variable.shape).astype("float32"))
    return model


def by_fit(model, optimizer, inputs=X, eager=False, epochs=1, **options) -> dict:
    model.compile(optimizer, loss="mse", run_eagerly=eager, jit_compile=not eager)
    history = model.fit(inputs, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **options).history
    return {"weights": weights(model), **history}


def weights(model) -> list:
    return [np.asarray(variable).tolist() for variable in model.trainable_variables]


def by_stateless_apply(model, optimizer) -> dict:
    """The updates of by_fit without a trainer: pure functions of the values of all variables."""
    import jax

    optimizer.build(model.trainable_variables)

    def loss(trainable, images, targets):
        outputs, _ = model.stateless_call(trainable, [], images)
        return keras.ops.mean(keras.ops.square(outputs - targets))

    trainable = [variable.value for variable in model.trainable_variables]
    state = [variable.value for variable in optimizer.variables]
    for batch in range(UPDATES):
        rows = slice(batch * BATCH, (batch + 1) * BATCH)
        gradients = jax.grad(loss)(trainable, X[rows], Y[rows])
        trainable, state = optimizer.stateless_apply(state, gradients, trainable)
    for variable, value in zip([*model.trainable_variables, *optimizer.variables], [*trainable, *state], strict=True):
        variable.assign(value)
    optimizer.finalize_variable_values(model.trainable_variables)
    return {"weights": weights(model)}


def watched(optimizer, eager: bool) -> dict:
    """Two fits with validation at the evaluation weights."""
    model, callback = images(), suite.EvaluationWeights()
    runs = [by_fit(model, optimizer, eager=eager, epochs=2, validation_data=(X, Y), callbacks=[callback])]
    history = model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[callback]).history
    return {"weights": weights(model), "val_loss": runs[0]["val_loss"], "loss": history["loss"]}


WATCHED = {
    "Schedule-Free": lambda: suite.ScheduleFreeAdamW(0.1),
    "average": lambda: suite.AdamW(0.05, use_ema=True, ema_momentum=0.7),
}


def outcome(run) -> dict:
    try:
        return run()
    except Exception:
        return {"error": traceback.format_exc()}


def main(result: str, *names: str) -> None:
    runs = {"tensorflow": TENSORFLOW_CAME_ALONG, "backend": keras.backend.backend()}
    for name in names or OPTIONS:
        runs[f"fit {name}"] = outcome(lambda n=name: by_fit(images(), new(n)))
        runs[f"stateless {name}"] = outcome(lambda n=name: by_stateless_apply(images(), new(n)))
    if not names:
        for name, make in WATCHED.items():
            runs[f"watched {name}"] = outcome(lambda m=make: watched(m(), eager=False))
        runs["table"] = outcome(lambda: by_fit(table(), suite.Adam(0.05), IDS))
    with open(result, "w") as file:
        json.dump(runs, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
