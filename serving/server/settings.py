"""TF Serving's settings files whose messages tensorflow-serving-api leaves out: batching, monitoring, TLS."""

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from serving.server.config import ConfigError

# By field: a scalar type of proto3, "repeated" before it, a wrapper of google.protobuf, or another of these messages.
# The text form depends on names and types, not on numbers.
_FIELDS = {
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
    "SSLConfig": {"server_key": "string", "server_cert": "string", "custom_ca": "string", "client_verify": "bool"},
    "BatchingParameters": {
        "max_batch_size": "Int64Value",
        "batch_timeout_micros": "Int64Value",
        "max_enqueued_batches": "Int64Value",
        "num_batch_threads": "Int64Value",
        "thread_pool_name": "StringValue",
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
        "enable_large_batch_splitting": "BoolValue",
        "max_execution_batch_size": "Int64Value",
    },
}
DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"


def metrics_path(file: Path | None) -> str | None:
    """Where --monitoring_config_file puts the metrics on the REST port; None: nowhere. Raises ConfigError."""
    if file is None:
        return None
    prometheus = _read(file, "--monitoring_config_file", "MonitoringConfig").prometheus_config
    return (prometheus.path or DEFAULT_METRICS_PATH) if prometheus.enable else None


def ssl_config(file: Path) -> Any:
    """The SSLConfig of --ssl_config_file: PEM texts, not paths. Raises ConfigError."""
    return _read(file, "--ssl_config_file", "SSLConfig")


def parse(name: str, text: str) -> Any:
    """The message `name` in its text form. Raises text_format.ParseError, also for a field that it has not."""
    return text_format.Parse(text, _MESSAGES[name]())


def _describe() -> dict[str, Any]:
    described = descriptor_pb2.FileDescriptorProto(name="settings.proto", package="tensorflow.serving", syntax="proto3")
    described.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, fields in _FIELDS.items():
        message = described.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            scalar = kind.removeprefix("repeated ")
            entry = message.field.add(name=field, number=number)
            entry.label = entry.LABEL_OPTIONAL if scalar == kind else entry.LABEL_REPEATED
            if scalar[0].islower():
                entry.type = entry.Type.Value(f"TYPE_{scalar.upper()}")
            else:
                package = "tensorflow.serving" if kind in _FIELDS else "google.protobuf"
                entry.type, entry.type_name = entry.TYPE_MESSAGE, f".{package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(described)
    found = {name: pool.FindMessageTypeByName(f"tensorflow.serving.{name}") for name in _FIELDS}
    return {name: message_factory.GetMessageClass(each) for name, each in found.items()}


_MESSAGES = _describe()


def _read(file: Path, flag: str, name: str) -> Any:
    try:
        return parse(name, file.read_text())
    except OSError as error:
        raise ConfigError(f"{flag} {file}: {error.strerror}", 66) from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        reason = str(error) if name != "SSLConfig" else "not shown, since it may hold a key"
        raise ConfigError(f"{flag} {file} is not a {name}: {reason}", 65) from None
