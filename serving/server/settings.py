"""TF Serving's settings files whose messages tensorflow-serving-api leaves out: text protos for monitoring and TLS."""

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from serving.server.config import ConfigError

_STRING, _BOOL = descriptor_pb2.FieldDescriptorProto.TYPE_STRING, descriptor_pb2.FieldDescriptorProto.TYPE_BOOL
_FIELDS: dict[str, dict[str, int | str]] = {  # in the order of their numbers
    "PrometheusConfig": {"enable": _BOOL, "path": _STRING},
    "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
    "SSLConfig": {"server_key": _STRING, "server_cert": _STRING, "custom_ca": _STRING, "client_verify": _BOOL},
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


def _describe() -> descriptor_pool.DescriptorPool:
    described = descriptor_pb2.FileDescriptorProto(name="settings.proto", package="tensorflow.serving", syntax="proto3")
    for name, fields in _FIELDS.items():
        message = described.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            entry = message.field.add(name=field, number=number, label=1)
            if isinstance(kind, str):
                entry.type, entry.type_name = entry.TYPE_MESSAGE, f".tensorflow.serving.{kind}"
            else:
                entry.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(described)
    return pool


_POOL = _describe()


def _read(file: Path, flag: str, name: str) -> Any:
    message = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"tensorflow.serving.{name}"))()
    try:
        return text_format.Parse(file.read_text(), message)
    except OSError as error:
        raise ConfigError(f"{flag} {file}: {error.strerror}", 66) from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        reason = str(error) if name != "SSLConfig" else "not shown, since it may hold a key"
        raise ConfigError(f"{flag} {file} is not a {name}: {reason}", 65) from None
