"""A proof on the user's own settings that N replicas which share a batch make the updates of one that has all of it.

The compiled step of training runs on one device and on N logical devices of this machine's CPU, from the same weights
and over the end of an epoch, whose last batch is filled up; in float64, since batch normalisation makes a rounding
error of float32 grow from update to update.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from models import noise
from models.analysis import load
from models.spec import spec_of
from pipeline import records
from pipeline.advice.proofs import Distribution
from pipeline.errors import REFUSED, USAGE, UserError
from pipeline.training import descent, determinism, inputs, step
from pipeline.training.rows import prepare


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the updates told, and what in the model makes replicas differ: names of layers."""

    first: int  # number of the first update
    ends: int  # number of the update that ends the first epoch, and how many rows are left for it
    left: int
    values: np.ndarray  # [updates, 2, 2]: loss and norm of the gradient, on one replica and on several
    random: tuple[str, ...]  # draw by replica
    unsynchronised: tuple[str, ...]  # batch normalisation over each replica's share alone

    @property
    def apart(self) -> np.ndarray:
        """The relative difference of the losses or, if that is larger, of the gradients' norms, [updates]; infinite
        where only one of two is finite. The norms tell of a gradient that is summed twice where the descent rule does
        not care for its length, as Adam's and clipping do not."""
        one, several = self.values[:, :, 0], self.values[:, :, 1]  # [updates, 2]
        with np.errstate(invalid="ignore"):
            apart = np.abs(several - one) / np.maximum(np.abs(one), np.finfo(np.float64).tiny)
        same = np.isclose(one, several, rtol=0, atol=0, equal_nan=True)
        return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart)).max(axis=1)


def verify(config: Distribution, preset: str) -> None:
    """Prints every update and the verdict. Raises UserError(REFUSED), saying what is likely to blame, when replicas are
    further apart than `bar`."""
    compared = compare(config, records.find(config))
    apart, number = compared.apart, compared.first + 1
    print(
        f"updates {number} to {number + len(apart) - 1}, on 1 replica and on {config.replicas}; number {compared.ends} "
        f"ends an epoch, with {compared.left} of {config.train.batch_size} rows"
    )
    for i, ((loss, other), (norm, others)) in enumerate(compared.values):
        print(
            f"update {number + i}: loss {loss:.12g} and {other:.12g}, gradient {norm:.9g} and {others:.9g}, "
            f"{apart[i]:.1e} apart"
        )
    words = f"{len(apart)} updates are at most {apart.max():.1e} apart (bar {config.bar:.0e})"
    if apart.max() > config.bar:
        raise UserError(
            f"verify-distribution {preset}: {words}, first above it at update "
            f"{number + int(np.argmax(apart > config.bar))}; {_cause(compared)}.",
            REFUSED,
        )
    print(f"verdict: {config.replicas} replicas equal 1; {words}.")


def compare(config: Distribution, records_dir: Path) -> Comparison:
    """Makes the updates on one device and on `replicas`. Raises UserError(USAGE) for what cannot be shared out."""
    strategies = _strategies(config)
    # One update a call; the losses of mixed precision and of XLA are compared when the plan is measured.
    train = dataclasses.replace(
        config.train, strategy="cpu", inputs="memory", jit=False, precision="float32", steps_per_call=1
    )
    config = dataclasses.replace(config, train=train)
    spec, analysis = spec_of(config.task), load(records_dir, config.task)
    with _float64(), tempfile.TemporaryDirectory(prefix="verify-distribution-") as scratch:
        rows = prepare(records_dir, config, spec, analysis, Path(scratch) / "rows")
        per_epoch = -(-len(rows) // config.train.batch_size)
        first = max(0, per_epoch - -(-config.steps // 2))  # the end of the first epoch lies in the middle
        initial: list[np.ndarray] = []
        sides, model = [], None
        for strategy in strategies:
            batches = inputs.Batches(rows, config, strategy)
            keras.utils.set_random_seed(config.train.seed)
            with strategy.scope():
                model = spec.build(config.model, analysis)
                optimizer = descent.optimizer_of(config.optimizer, per_epoch, config.train.epochs)
                optimizer.build(model.trainable_variables)
            initial = initial or [variable.numpy() for variable in model.variables]
            for variable, value in zip(model.variables, initial, strict=True):
                variable.assign(value)
            optimizer.iterations.assign(first)  # where a schedule stands then
            steps = step.compiled(model, optimizer, spec, config, strategy)
            outcomes = [steps(batches.part(first + i, 1), True) for i in range(config.steps)]
            sides.append([(float(outcome.loss), float(outcome.norm)) for outcome in outcomes])
            batches.close()
    layers = [*_layers(model)]
    return Comparison(
        first,
        per_epoch,
        len(rows) - (per_epoch - 1) * config.train.batch_size,
        np.stack(sides, axis=-1),
        tuple(layer.name for layer in layers if _draws_by_replica(layer)),
        tuple(layer.name for layer in layers if getattr(layer, "synchronized", True) is False),
    )


def _strategies(config: Distribution) -> list[tf.distribute.Strategy]:
    """One device, and `replicas` of them. Raises UserError(USAGE) where the batch cannot be shared out among these."""
    if config.replicas < 2 or config.steps < 1:
        raise UserError(f"--replicas {config.replicas} --steps {config.steps}: at least 2 and 1.", USAGE)
    if config.train.batch_size % config.replicas:
        raise UserError(
            f"--train.batch-size {config.train.batch_size}: must be a multiple of the {config.replicas} replicas.",
            USAGE,
        )
    with contextlib.suppress(RuntimeError):  # TensorFlow runs already, with the devices it has
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * config.replicas)
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    if len(devices) < config.replicas:
        raise UserError(f"--replicas {config.replicas}: TensorFlow runs with {len(devices)} devices already.", USAGE)
    if config.train.deterministic:
        determinism.enable()
    return [
        tf.distribute.OneDeviceStrategy(devices[0]),
        tf.distribute.MirroredStrategy(devices[: config.replicas], tf.distribute.ReductionToOneDevice()),
    ]


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    before = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_floatx(before[1])


def _layers(model: Any) -> Iterator[keras.layers.Layer]:
    """The layers of a model, those within models, wrappers and recurrences included, and not the models themselves."""
    for layer in model._flatten_layers(include_self=False):
        if not isinstance(layer, keras.Model):
            yield layer


def _draws_by_replica(layer: keras.layers.Layer) -> bool:
    """Whether a layer takes its random numbers from a state of its own, of which each replica has a copy."""
    if isinstance(layer, noise.Dropout) or not hasattr(layer, "seed_generator"):
        return False
    rates = [getattr(layer, name) for name in ("rate", "dropout", "recurrent_dropout") if hasattr(layer, name)]
    return any(rates) or not rates


def _cause(compared: Comparison) -> str:
    if compared.random:
        return (
            f"{_named(compared.random)} draw other random numbers on each replica: use models.noise.Dropout, whose "
            "masks follow from seed, update and example"
        )
    if compared.unsynchronised:
        return (
            f"batch normalisation over each replica's share must be different ({_named(compared.unsynchronised)}): "
            "synchronise it (--model.sync-batch-norm, or synchronized=True in the layer) to prove the rest"
        )
    return (
        "no layer draws random numbers by replica and batch normalisation is synchronised, so look for a gradient or a "
        "statistic that is summed over the replicas twice or not at all (a layer or optimizer of your own)"
    )


def _named(layers: tuple[str, ...]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}"
