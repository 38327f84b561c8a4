"""What a training job on rented machines is made of, whichever platform runs it."""

import math
import re
from dataclasses import dataclass

from pipeline.errors import USAGE, UserError, redacted

PORT = 2222  # where workers listen to each other
ROOT = "/srv/work"  # the image's working folder, where the bucket is mounted

_PATTERNS = {
    "name": (r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "1 to 40 small letters, digits and '-', a letter first"),
    "image": (
        r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9][a-z0-9._-]*)*(:\w[\w.-]{0,127})?(@sha256:[0-9a-f]{64})?",
        "HOST/PATH:TAG",
    ),
    "bucket": (r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[\w-][\w.-]*)*", "gs://BUCKET/FOLDER"),
    "machine": (r"([a-z0-9]+(-[a-z0-9]+)*)?", "a machine type, like n2-standard-16"),
    "accelerator": (r"([A-Za-z0-9]+([-_][A-Za-z0-9]+)*)?", "the platform's own name of it"),
    "topology": (r"(\d{1,2}(x\d{1,2}){1,2})?", "like 2x4"),
    "zone": (r"([a-z]+-[a-z]+\d+-[a-z])?", "like europe-west4-b"),
    "account": (r"([a-z0-9]([-a-z0-9.@]{0,251}[a-z0-9])?)?", "a service account"),
}


@dataclass(frozen=True)
class Job:
    """One `minibatch train`, on one machine or several. Raises UserError for what no platform would take."""

    name: str
    """The job's name, and the run's."""
    image: str
    """Container image: the Dockerfile's target `train`, with the extra `gpu` or `tpu` where it is for one."""
    bucket: str
    """gs://BUCKET/FOLDER that holds records/ and receives runs/; it becomes the job's root folder."""
    preset: str
    options: tuple[str, ...] = ()
    """Further words of `minibatch train PRESET`."""
    workers: int = 1
    """Machines. More than one train with --train.strategy multi_worker."""
    machine: str = ""
    """Machine type; needed on Vertex AI."""
    accelerator: str = ""
    """GPU or TPU type, as the platform spells it."""
    accelerators: int = 1
    """GPUs, or TPU chips, on each machine; counts where the accelerator is named."""
    topology: str = ""
    """Shape of the TPU slice: what makes the accelerator a TPU (on a Cloud TPU VM it always is one)."""
    zone: str = ""
    """Where a Cloud TPU VM is asked for."""
    account: str = ""
    """Service account that may read and write the bucket."""

    def __post_init__(self) -> None:
        for field, (pattern, example) in _PATTERNS.items():
            value = getattr(self, field)
            if not re.fullmatch(pattern, value, re.ASCII):
                raise UserError(f"--{field} {value!r}: give {example}.", USAGE)
        if unprintable := [word for word in (self.preset, *self.options) if not word.isprintable()]:
            raise UserError(f"{unprintable[0]!r}: holds a character that no job file can.", USAGE)
        if fresh := {"--fresh", "--run.fresh"}.intersection(self.options):
            raise UserError(
                f"{min(fresh)}: a job that is started again would start the run again; take a new --name.", USAGE
            )
        if (shown := redacted([*self.options])) != [*self.options]:
            word = next(word for word, typed in zip(shown, self.options, strict=True) if word != typed)
            raise UserError(f"{word}: a job file would hold it in the clear; give it to the machines.", USAGE)
        if not 1 <= self.workers <= 1000:
            raise UserError(f"--workers {self.workers}: give 1 to 1000.", USAGE)
        if not 1 <= self.accelerators <= 16:
            raise UserError(f"--accelerators {self.accelerators}: give 1 to 16 on each machine.", USAGE)
        chips = math.prod(map(int, self.topology.split("x"))) if self.topology else self.accelerators
        if self.topology and (self.workers > 1 or chips != self.accelerators):
            raise UserError(
                f"--topology {self.topology} --accelerators {self.accelerators} --workers {self.workers}: a TPU job "
                "has one host here, which holds the whole slice; each further one would need a server of TensorFlow.",
                USAGE,
            )

    @property
    def strategy(self) -> str:
        if self.topology:
            return "tpu"
        if self.workers > 1:
            return "multi_worker"
        if not self.accelerator:
            return "cpu"
        return "gpu" if self.accelerators == 1 else "mirrored"

    @property
    def bucket_name(self) -> str:
        return self.bucket.removeprefix("gs://").split("/")[0]

    @property
    def folder(self) -> str:
        """The path inside the bucket; empty for all of it."""
        return "/".join(self.bucket.removeprefix("gs://").split("/")[1:])

    def words(self, root: str = ROOT, strategy: str = "") -> list[str]:
        """What follows `minibatch`. Ours come last: the last of two equal options counts."""
        ours = ["--run.name", self.name, "--run.root", root, "--train.strategy", strategy or self.strategy]
        return ["train", self.preset, *self.options, *ours]
