"""Every setting of a run, as frozen dataclasses; the command line is made from them (`--train.batch-size 128`).

Nothing here imports TensorFlow, so that `--help` is instant.
"""

import dataclasses
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from models.options import Image, Options
from pipeline.errors import USAGE, UserError


def _pairs(kind: type, metavar: str) -> tyro.constructors.PrimitiveConstructorSpec:
    """A dict as words on the command line, `name value name value`; what is given replaces the default as a whole."""

    def read(words: list[str]) -> dict:
        if len(words) % 2:
            raise ValueError(f"{words[-1]!r} has no value beside it")
        return {key: kind(value) for key, value in zip(words[::2], words[1::2], strict=True)}

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(word) for pair in value.items() for word in pair],
    )


Words = Annotated[
    tuple[str, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="WORDS",
        instance_from_str=lambda words: tuple(shlex.split(words[0])),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [shlex.join(value)],
    ),
]
Names = Annotated[dict[str, str], _pairs(str, "[NAME NAME ...]")]
Numbers = Annotated[dict[str, float], _pairs(float, "[NAME NUMBER ...]")]


@dataclass(frozen=True)
class Data:
    """Where the rows come from and how they are split."""

    source: Literal["sample", "tfds", "ml-100k"] = "sample"
    """sample: real data out of wheels of the package index; tfds: TensorFlow Datasets; ml-100k: the original folds."""
    name: str = ""
    """Data set within the source: digits, reviews or ratings; a TFDS name; empty for ml-100k."""
    path: Path | None = None
    """Folder that holds the data already: a TFDS data directory, the ml-100k folder, or a hand-placed sample wheel."""
    download: bool = False
    """tfds: download and prepare what is missing."""
    fold: Literal[1, 2, 3, 4, 5] = 1
    """ml-100k: which of u1..u5."""
    columns: Names = field(default_factory=dict)
    """Our feature name -> the source's, where they differ: item_id movie_id."""
    classes: tuple[str, ...] = ()
    """Expected class names in order (the last of two is the positive one); empty: those found in training, sorted."""
    split_by: Literal["hash", "time"] = "hash"
    """hash: by a stable hash of the row's key; time: a user's latest ratings are held out."""
    validation_fraction: float = 0.1
    """Share of the source's training rows held out for validation."""
    test_fraction: float = 0.1
    """Share of the rows held out for the test, where the source has no test split of its own."""
    limit: int | None = None
    """Read only about this many rows of each source split (for trying things out)."""
    max_bad_fraction: float = 0.01
    """More dead letters than this share of the rows stop the run."""
    shards: int = 4
    """TFRecord files a split."""
    runner: str = "FnApiRunner"
    """Beam runner by name: FnApiRunner (in this process), DataflowRunner, FlinkRunner, SparkRunner, ..."""
    runner_options: Words = ()
    """Options handed to that runner as they are, in one quoted word: --data.runner-options="--project=p --region=r".
    Workers write into the records folder: a cluster needs one that driver and workers share."""


@dataclass(frozen=True)
class Optimizer:
    """The descent rule, its learning-rate schedule and its clipping."""

    name: str = "adam"
    """An optimizer of custom_optimizers or of Keras, in any case: adam, sgd, adamw, ..."""
    learning_rate: float = 1e-3
    """The peak of the schedule."""
    schedule: Literal["constant", "exponential", "cosine", "cyclical"] = "constant"
    """How the learning rate moves over the updates; the formulas are in pipeline/training/descent.py."""
    warmup_epochs: float = 0.0
    """Linear rise over so many epochs before the schedule starts."""
    decay_rate: float = 0.5
    """exponential: factor every `decay_epochs`."""
    decay_epochs: float = 1.0
    """exponential: epochs for one factor; cyclical: epochs from the lowest to the highest rate."""
    final_fraction: float = 0.0
    """cosine and cyclical: lowest learning rate as a share of the peak."""
    weight_decay: float | None = None
    """Decoupled weight decay, as Keras defines it."""
    clip: Literal["none", "value", "norm", "global_norm"] = "none"
    """Clip the reduced gradient: each entry, each variable's norm, or the norm over all variables."""
    clip_at: float = 1.0
    """The bound for `clip`."""
    arguments: Numbers = field(default_factory=dict)
    """Further constructor arguments of the optimizer: beta_1 0.8 momentum 0.9."""


@dataclass(frozen=True)
class Train:
    """The training loop."""

    batch_size: int = 64
    """Examples in one update, over all replicas."""
    epochs: int = 10
    """Passes over the training rows, at the most."""
    seed: int = 0
    """Initial weights, order of the rows, augmentation and dropout all follow from it."""
    strategy: Literal["cpu", "gpu", "mirrored", "multi_worker", "tpu"] = "cpu"
    """Which tf.distribute strategy runs the steps."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Keras' dtype policy."""
    plan: Literal["measured", "given"] = "measured"
    """measured: jit, precision (if bfloat16 is allowed), inputs and steps_per_call are set to the fastest before the
    first update; given: they are taken as they are."""
    inputs: Literal["memory", "streamed"] = "memory"
    """Where the prepared rows lie: on the device, or on the host, from where each call's are gathered ahead of it. A
    measured plan decides by itself."""
    memory_limit: int = 4096
    """MiB for the prepared rows; more than that are kept in files and streamed."""
    allow_bfloat16: bool = False
    """A measured plan may compute in mixed_bfloat16; variables stay float32."""
    jit: bool = False
    """Compile the step with XLA. A measured plan decides by itself."""
    steps_per_call: int = 50
    """Updates in one compiled call; metrics are written once a call. A measured plan decides by itself."""
    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """A loss or gradient that is not finite: stop; skip that update; or go back to the last checkpoint and leave out
    the updates of that line of the log."""
    checkpoint_seconds: float = 300.0
    """Write a checkpoint after this time as well as at the end of an epoch."""
    patience: int = 5
    """Stop after this many epochs without a better validation score."""
    keep: int = 2
    """Checkpoints kept besides the best."""
    deterministic: bool = True
    """The same seed and plan give the same model, bit for bit; see training/determinism.py."""
    tensorboard: bool = True
    """Write TensorBoard event files."""


@dataclass(frozen=True)
class Gate:
    """What a candidate must reach before it is pushed."""

    at_least: Numbers = field(default_factory=dict)
    """Metric -> lowest value allowed on the test rows."""
    at_most: Numbers = field(default_factory=dict)
    """Metric -> highest value allowed on the test rows."""
    tolerance: Numbers = field(default_factory=dict)
    """Metric -> how much worse than the live model the candidate may be, over all rows."""
    slice_tolerance: Numbers = field(default_factory=dict)
    """Metric -> how much worse than the live model it may be on any slice that is large enough."""
    min_slice_examples: int = 50
    """Smaller slices are reported and not judged."""
    min_examples: int = 100
    """Fewer test rows than this are no evidence: the candidate is refused."""
    max_latency_ratio: float = 3.0
    """Time for one batch of the test rows, against the live model's in the same process."""


@dataclass(frozen=True)
class Push:
    """How an accepted candidate goes live."""

    percent: float = 100
    """Below 100 it is a canary: this share of the requests that name no version; `minibatch promote` or `rollback`
    decides. The first version of a model gets all of them."""
    validate: bool = True
    """Boot the server on the export first, and compare its REST and gRPC answers with those at export."""
    max_p99_ms: float | None = None
    """validate: highest 99th percentile of a single row's latency, over REST or gRPC, on this machine."""
    max_memory_mb: float | None = None
    """validate: most memory that the server may have needed."""
    key_file: Path | None = None
    """Sign the version's manifest with the key in this file, for servers started with --manifest_key_file."""


@dataclass(frozen=True)
class Run:
    """Where things go."""

    name: str = ""
    """The run's directory under runs/; the preset's name by default. The same command resumes an unfinished run."""
    model: str = ""
    """The model's name under exports/; the preset's name without -sample by default."""
    root: Path = Path(".")
    """Folder that holds records/, runs/ and exports/."""
    cache: Path = Path(".cache")
    """Folder, under root unless absolute, for fetched files."""
    fresh: Annotated[bool, tyro.conf.arg(aliases=("--fresh",))] = False
    """Start a new run beside the one that is there."""


@dataclass(frozen=True)
class Config:
    """One run from source to serving root."""

    model: Options
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    gate: Gate = field(default_factory=Gate)
    push: Push = field(default_factory=Push)
    run: Run = field(default_factory=Run)

    @property
    def task(self) -> str:
        return self.model.task

    @property
    def records_root(self) -> Path:
        """records/<data set>/: one committed directory a fingerprint."""
        name = self.data.name or f"{self.data.source}-u{self.data.fold}"
        return self.run.root / "records" / name.replace("/", "-")

    @property
    def runs_root(self) -> Path:
        """runs/<name>/: one numbered directory a fresh start."""
        return self.run.root / "runs" / self.run.name

    @property
    def exports_root(self) -> Path:
        """exports/<model>/: the integer versions that a server loads."""
        return self.run.root / "exports" / self.run.model

    @property
    def cache_root(self) -> Path:
        return self.run.root / self.run.cache


def to_json(config: Any) -> Any:
    """A dataclass as plain JSON values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"task": config.task, **values} if hasattr(config, "task") else values
    if isinstance(config, dict):
        return {str(k): to_json(v) for k, v in config.items()}
    if isinstance(config, tuple | list):
        return [to_json(v) for v in config]
    return str(config) if isinstance(config, Path) else config


def difference(old: dict, new: dict, at: str = "") -> list[str]:
    """One `section.field: old -> new` line for each value that differs between two JSON configs."""
    lines = []
    for key in sorted({*old, *new}):
        before, after, name = old.get(key), new.get(key), f"{at}{key}"
        if isinstance(before, dict) and isinstance(after, dict):
            lines += difference(before, after, f"{name}.")
        elif before != after:
            lines.append(f"{name}: {before} -> {after}")
    return lines


def check(config: Config) -> Config:
    """The config, if its values make sense together; UserError(USAGE) naming the option otherwise."""
    for option, value in _given(config, _SHARES):
        if not 0 <= value < 1:
            raise UserError(f"{option} {value}: give a share from 0 up to, but not including, 1.", USAGE)
    for option, value in _given(config, _POSITIVE):
        if not 0 < value < math.inf:
            raise UserError(f"{option} {value}: must be above 0.", USAGE)
    for option, value in _given(config, _NOT_NEGATIVE):
        if not 0 <= value < math.inf:
            raise UserError(f"{option} {value}: must not be negative.", USAGE)
    data, model = config.data, config.model
    if config.train.jit and config.train.strategy not in ("cpu", "gpu"):
        raise UserError(
            f"--train.jit --train.strategy {config.train.strategy}: XLA compiles the updates of one device here; drop "
            "--train.jit (a TPU compiles without it).",
            USAGE,
        )
    if not config.train.seed < 2**32:
        raise UserError(f"--train.seed {config.train.seed}: must be below 2^32.", USAGE)
    if not config.push.percent <= 100:
        raise UserError(f"--push.percent {config.push.percent:g}: must be at most 100.", USAGE)
    if not config.optimizer.final_fraction <= 1:
        raise UserError(f"--optimizer.final-fraction {config.optimizer.final_fraction}: must be at most 1.", USAGE)
    if data.validation_fraction + data.test_fraction >= 1:
        raise UserError("--data.validation-fraction and --data.test-fraction leave no training rows.", USAGE)
    if data.name and (not re.fullmatch(r"[A-Za-z0-9][\w.:/+=,-]*", data.name) or ".." in data.name):
        raise UserError(f"--data.name {data.name!r}: is no name of a data set.", USAGE)
    if isinstance(model, Image):
        smallest = min(model.height, model.width)
        left = smallest - 2 if model.stem else smallest  # pixels before the first stage
        most = max(0, left).bit_length() - (model.pool == "first")
        if not 1 <= len(model.filters) <= most:
            raise UserError(
                f"--model.filters {' '.join(map(str, model.filters))}: give 1 to {most} stages; each "
                f"{'' if model.pool == 'first' else 'but the last '}halves the {model.height} x {model.width} pixels.",
                USAGE,
            )
        if model.crop >= smallest:
            raise UserError(f"--model.crop {model.crop}: must be smaller than the image.", USAGE)
    for option, name in {"--run.name": config.run.name, "--run.model": config.run.model}.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) or ".." in name:
            raise UserError(f"{option} {name!r}: use 1 to 64 letters, digits, '-', '_' or '.', no '..'.", USAGE)
    return config


_SHARES = (
    "data.validation_fraction",
    "data.test_fraction",
    "data.max_bad_fraction",
    "model.dropout",
    "model.word_dropout",
    "model.label_smoothing",
)
_POSITIVE = (
    "data.limit",
    "data.shards",
    "model.height",
    "model.width",
    "model.filters",
    "model.convolutions",
    "model.vocabulary_size",
    "model.max_tokens",
    "model.embedding",
    "model.units",
    "model.factors",
    "model.members",
    "model.k",
    "optimizer.learning_rate",
    "optimizer.decay_rate",
    "optimizer.decay_epochs",
    "optimizer.clip_at",
    "train.batch_size",
    "train.epochs",
    "train.steps_per_call",
    "train.patience",
    "train.memory_limit",
    "train.checkpoint_seconds",
    "train.keep",
    "gate.max_latency_ratio",
    "push.percent",
    "push.max_p99_ms",
    "push.max_memory_mb",
)
_NOT_NEGATIVE = (
    "model.bigrams",
    "model.l1",
    "model.l2",
    "model.stem",
    "model.crop",
    "optimizer.warmup_epochs",
    "optimizer.final_fraction",
    "optimizer.weight_decay",
    "train.seed",
    "gate.tolerance",
    "gate.slice_tolerance",
    "gate.min_slice_examples",
    "gate.min_examples",
)


def _given(config: Config, names: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """(option, value) of each of these settings that is there and set, a pair for each entry of a collection."""
    for name in names:
        section, field_name = name.split(".")
        value = getattr(getattr(config, section), field_name, None)
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            yield from ((f"{option}.{key}", entry) for key, entry in value.items())
        elif value is not None:
            yield from ((option, entry) for entry in (value if isinstance(value, tuple) else (value,)))
