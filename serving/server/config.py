"""Which models the flags, a config file or a request ask for, and which of its versions each model should offer."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.server.errors import RequestError, invalid
from serving.server.flags import Flags
from serving.server.live import Live

_MAX_VERSION = 2**63 - 1
_PLATFORM = "tensorflow"


class ConfigError(Exception):
    """Why the server cannot start, in one line; `status` is its exit status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class VersionPolicy:
    """The `specific` versions, if given, else the `latest` n; n = 0 means all."""

    latest: int = 1
    specific: frozenset[int] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """`rooted`: found in the serving root, so LIVE.json counts, and an older version stands in for one that fails."""

    name: str
    base_path: Path
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = field(default_factory=dict)
    rooted: bool = False


def model_configs(flags: Flags) -> list[ModelConfig]:
    """The models that the flags name. Raises ConfigError for a config file or a serving root that is none.

    A model config file replaces name and base path, as in TF Serving. A base path need not be there yet.
    """
    if flags.serving_root and not flags.serving_root.is_dir():
        remedy = "`minibatch run PRESET` makes it, or give --serving_root"
        raise ConfigError(f"--serving_root {flags.serving_root} is not a folder; {remedy}", 66)
    if flags.model_config_file:
        try:
            return read_config_file(flags.model_config_file)
        except OSError as error:
            raise ConfigError(f"--model_config_file {flags.model_config_file}: {error.strerror}", 66) from None
        except RequestError as error:
            raise ConfigError(f"--model_config_file {flags.model_config_file}: {error}", 65) from None
    return [ModelConfig(flags.model_name, flags.model_base_path.absolute())] if flags.model_base_path else []


def discover(serving_root: Path) -> list[ModelConfig]:
    """A model for each subfolder that holds at least one version. Raises OSError when the root cannot be read."""
    return [
        ModelConfig(path.name, path, rooted=True)
        for path in sorted(serving_root.iterdir())
        if not path.name.startswith(".") and os.path.isdir(path) and versions_on_disk(path)
    ]


def versions_on_disk(base_path: Path) -> dict[int, Path] | None:
    """The subfolders whose whole name is an integer; None when the base path cannot be read."""
    try:
        return {
            int(path.name): path
            for path in sorted(base_path.iterdir())
            if re.fullmatch("[0-9]+", path.name) and int(path.name) <= _MAX_VERSION and path.is_dir()
        }
    except OSError:
        return None


def aspired(on_disk: Iterable[int], config: ModelConfig, failed: set[int], live: Live | None) -> set[int]:
    """Which of the versions a model should offer.

    TF Serving goes on aspiring a version that failed, and at a start serves nothing then; in a serving root the next
    older one is taken, and the failed one is only left when there is no other.
    """
    if live:
        return live.versions & set(on_disk)
    if config.policy.specific is not None:
        return set(config.policy.specific) & set(on_disk)
    usable = {number for number in on_disk if not (config.rooted and number in failed)} or set(on_disk)
    return set(sorted(usable, reverse=True)[: config.policy.latest or None])


def read_config_file(path: Path) -> list[ModelConfig]:
    """The models of a text ModelServerConfig. Raises OSError, or RequestError for what TF Serving refuses."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        parsed = text_format.Parse(path.read_text(), model_server_config_pb2.ModelServerConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise invalid(f"not a ModelServerConfig: {' '.join(str(error).split())}") from None
    if parsed.HasField("custom_model_config"):
        raise invalid("ModelServer does not yet support custom model config.")
    return listed(parsed.model_config_list)


def listed(models: Any) -> list[ModelConfig]:
    """The models of a ModelConfigList. Raises RequestError(INVALID_ARGUMENT) with TF Serving's words."""
    configs: dict[str, ModelConfig] = {}
    for model in models.config:
        if model.name in configs:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        configs[model.name] = ModelConfig(
            model.name, Path(model.base_path), _policy(model.model_version_policy), dict(model.version_labels)
        )
    for model in models.config:
        if not Path(model.base_path).is_absolute():
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )
    for model in models.config:
        _check_platform(model)
    return list(configs.values())


def _check_platform(model: Any) -> None:
    """TF Serving stores a config before it finds a platform missing, and refuses every later one: not so here."""
    if model.model_type:
        if model.model_platform:
            raise invalid(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                f"ModelServerConfig::model_platform, model name is {model.name}"
            )
        if model.model_type != 1:  # TENSORFLOW
            raise invalid(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
    elif not model.model_platform:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f'ModelServerConfig::model_platform, model name is {model.name} (write model_platform: "{_PLATFORM}")'
        )
    elif model.model_platform != _PLATFORM:
        raise invalid(f"Model {model.name} requests unsupported platform {model.model_platform}")


def _policy(proto: Any) -> VersionPolicy:  # proto: FileSystemStoragePathSourceConfig.ServableVersionPolicy
    if proto.HasField("all"):
        return VersionPolicy(latest=0)
    if proto.HasField("specific"):
        return VersionPolicy(specific=frozenset(proto.specific.versions))
    return VersionPolicy(latest=proto.latest.num_versions or 1)
