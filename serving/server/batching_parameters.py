"""How requests are merged into batches: TF Serving's BatchingParameters, which tensorflow-serving-api leaves out."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

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
        message = text_format.Parse(text, _MESSAGE())
    except text_format.ParseError as error:
        raise invalid(f"{file} is not a BatchingParameters: {error}") from None
    return BatchingParameters(**{field.name: _plain(value) for field, value in message.ListFields()})


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | str):
        return value
    return value.value if hasattr(value, "value") else tuple(value)


def _describe() -> Any:
    """The message class; its names and types are what the text form depends on, not its numbers."""
    kinds = descriptor_pb2.FieldDescriptorProto
    described = descriptor_pb2.FileDescriptorProto(
        name="batching_parameters.proto", package="tensorflow.serving", syntax="proto3"
    )
    described.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    message = described.message_type.add(name="BatchingParameters")
    for number, (name, kind) in enumerate(_FIELDS.items(), 1):
        field = message.field.add(name=name, number=number, label=kinds.LABEL_OPTIONAL)
        if kind.endswith("Value"):
            field.type, field.type_name = kinds.TYPE_MESSAGE, f".google.protobuf.{kind}"
        else:
            field.type = kinds.TYPE_INT64 if kind == "sizes" else kinds.TYPE_BOOL
            field.label = kinds.LABEL_REPEATED if kind == "sizes" else kinds.LABEL_OPTIONAL
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(described)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters"))


_FIELDS = {
    "max_batch_size": "Int64Value",
    "batch_timeout_micros": "Int64Value",
    "max_enqueued_batches": "Int64Value",
    "num_batch_threads": "Int64Value",
    "thread_pool_name": "StringValue",
    "allowed_batch_sizes": "sizes",
    "pad_variable_length_inputs": "bool",
    "enable_large_batch_splitting": "BoolValue",
    "max_execution_batch_size": "Int64Value",
}
_MESSAGE = _describe()
