"""How requests are merged into batches: TF Serving's BatchingParameters."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from serving.server import settings
from serving.server.errors import Code, RequestError, invalid

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # that we may use
PER_MODEL_FILE = "batching_params.pbtxt"  # in a version's folder


@dataclass(frozen=True)
class BatchingParameters:
    """Sizes are rows. Raises RequestError(INVALID_ARGUMENT) for sizes that contradict each other."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0  # how long an incomplete batch waits when a thread is free
    max_enqueued_batches: int = 10  # per queue, the open one included
    num_batch_threads: int = CPUS
    thread_pool_name: str = "model_server_batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0  # with splitting: the largest batch; 0: max_batch_size

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise invalid(f"{name} must be positive; was {getattr(self, name)}")
        if self.batch_timeout_micros < 0:
            raise invalid(f"batch_timeout_micros must be non-negative; was {self.batch_timeout_micros}")
        if self.largest > self.max_batch_size:
            raise invalid(
                f"max_execution_batch_size should be less than or equal to max_batch_size; was {self.largest}, "
                f"expected at most {self.max_batch_size}"
            )
        sizes = self.allowed_batch_sizes
        if any(later <= earlier for earlier, later in itertools.pairwise(sizes)):
            raise invalid("allowed_batch_sizes entries must be monotonically increasing")
        if sizes and sizes[-1] != self.largest:
            limit = "max_execution_batch_size" if self.enable_large_batch_splitting else "max_batch_size"
            raise invalid(
                f"Last entry in allowed_batch_sizes must match {limit}; last entry was {sizes[-1]}; "
                f"expected {self.largest}"
            )

    @property
    def largest(self) -> int:
        """The most rows that run together."""
        return (self.enable_large_batch_splitting and self.max_execution_batch_size) or self.max_batch_size

    def padded(self, rows: int) -> int:
        """The smallest allowed size that holds `rows`."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


def read(file: Path) -> BatchingParameters:
    """Raises RequestError for a file that cannot be read, a field that TF Serving does not know, or a wrong value."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(Code.NOT_FOUND, f"{file}: {error}") from None
    try:
        message = settings.parse("BatchingParameters", text)
    except text_format.ParseError as error:
        raise invalid(f"{file} is not a BatchingParameters: {error}") from None
    return BatchingParameters(**{field.name: _plain(value) for field, value in message.ListFields()})


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | str):
        return value
    return value.value if hasattr(value, "value") else tuple(value)
