"""Which models the flags ask for, and which of its versions each model should offer."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from serving.server.flags import Flags

_MAX_VERSION = 2**63 - 1


class ConfigError(Exception):
    """Why the server cannot start, in one line; `status` is its exit status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class VersionPolicy:
    """`specific` versions if any are named, else the `latest` n; n = 0 means all."""

    latest: int = 1
    specific: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class ModelConfig:
    name: str
    base_path: Path
    policy: VersionPolicy = VersionPolicy()


def model_configs(flags: Flags) -> list[ModelConfig]:
    """The models of the flags as the folders stand now. Raises ConfigError for a folder or file that is not there.

    A model config file replaces name and base path, as in TF Serving; a serving root adds what it holds to either.
    """
    if flags.model_config_file:
        configs = _read_config_file(flags.model_config_file)
    elif flags.model_base_path:
        configs = [ModelConfig(flags.model_name, flags.model_base_path)]
    else:
        configs = []
    for config in configs:
        if not config.base_path.is_dir():
            raise ConfigError(f"model {config.name}: the base path {config.base_path} is not a folder", 66)
    if flags.serving_root:
        if not flags.serving_root.is_dir():
            raise ConfigError(f"--serving_root {flags.serving_root} is not a folder", 66)
        named = {config.name for config in configs}
        configs += [config for config in discover(flags.serving_root) if config.name not in named]
    return configs


def discover(serving_root: Path) -> list[ModelConfig]:
    """A model for each subfolder that holds at least one version."""
    return [
        ModelConfig(path.name, path)
        for path in sorted(serving_root.iterdir())
        if not path.name.startswith(".") and path.is_dir() and versions_on_disk(path)
    ]


def versions_on_disk(base_path: Path) -> dict[int, Path]:
    """The subfolders whose whole name is an integer; none when the base path is gone."""
    try:
        children = sorted(base_path.iterdir())
    except OSError:
        return {}
    return {
        int(path.name): path
        for path in children
        if re.fullmatch("[0-9]+", path.name) and int(path.name) <= _MAX_VERSION and path.is_dir()
    }


def aspired(versions: set[int], policy: VersionPolicy) -> set[int]:
    """Which of the versions a model should offer."""
    if policy.specific:
        return versions & policy.specific
    return set(sorted(versions, reverse=True)[: policy.latest or None])


def _read_config_file(path: Path) -> list[ModelConfig]:
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        parsed = text_format.Parse(path.read_text(), model_server_config_pb2.ModelServerConfig())
    except OSError as error:
        raise ConfigError(f"--model_config_file {path}: {error.strerror}", 66) from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"--model_config_file {path} is not a ModelServerConfig: {error}", 65) from None
    configs: list[ModelConfig] = []
    for model in parsed.model_config_list.config:
        if model.name in {config.name for config in configs}:
            raise ConfigError(f"Illegal to list model {model.name} multiple times in config list", 65)
        base_path = Path(model.base_path)
        if not base_path.is_absolute():
            raise ConfigError(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}", 65
            )
        configs.append(ModelConfig(model.name, base_path, _policy(model.model_version_policy)))
    return configs


def _policy(proto) -> VersionPolicy:  # proto: FileSystemStoragePathSourceConfig.ServableVersionPolicy
    if proto.HasField("all"):
        return VersionPolicy(latest=0)
    if proto.HasField("specific"):
        return VersionPolicy(specific=frozenset(proto.specific.versions))
    return VersionPolicy(latest=proto.latest.num_versions or 1)
