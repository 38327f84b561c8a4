"""The options of the commands that prove something of a config, beside the config itself."""

from dataclasses import dataclass

from pipeline.config import Config


@dataclass(frozen=True)
class Resumption(Config):
    """Trains twice, undisturbed and with kill -9, and compares: both runs must end bit-equal.

    Exit code 0 if they do, 3 with the first difference otherwise. Short runs prove as much as long ones: add, for
    example, --train.epochs 2, and --data.limit 2000 as preprocess had it. Nothing is left behind.
    """

    kills: int = 3
    """How often the second run is killed, once in each of so many equal parts of it."""
    kill_seed: int | None = None
    """Seed of the moments of the kills; drawn and printed when it is not given."""


@dataclass(frozen=True)
class Distribution(Config):
    """Makes the same updates on one device and on several, and compares: N replicas must equal one.

    The devices are parts of this machine's CPU, the batch is the same, and so is everything random. Exit code 0 if
    losses and gradients agree, 3 with the likely cause otherwise. Nothing is left behind.
    """

    replicas: int = 2
    """Devices that share each batch."""
    steps: int = 20
    """Updates that are compared; --data.limit and --train.batch-size decide how many make an epoch, whose last batch is
    smaller."""
    bar: float = 1e-6
    """Largest relative difference of a loss, or of a gradient's norm."""


KINDS: dict[str, type[Config]] = {"verify-resume": Resumption, "verify-distribution": Distribution}
