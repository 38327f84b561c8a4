"""What is asked of a server, and what it answers: the values that a client takes and hands out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class ModelSpec(NamedTuple):
    """Which version of a model is asked: neither number nor label: the one that the server prefers."""

    name: str
    version: int | None = None
    label: str | None = None


class Outputs(dict[str, np.ndarray]):
    """Arrays by output name. `version` is the one that answered; None where REST does not say (none was asked for)."""

    version: int | None = None


class Class(NamedTuple):
    label: str
    score: float


@dataclass(frozen=True)
class VersionStatus:
    """`state` is START, LOADING, AVAILABLE, UNLOADING or END; a version whose load failed is END with an error."""

    version: int
    state: str
    error_code: str
    error_message: str


@dataclass(frozen=True)
class TensorSpec:
    """`shape` has -1 for a dimension that varies and is None for an unknown rank; dtype object means strings."""

    dtype: np.dtype
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Signature:
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Metadata:
    """What one version of a model accepts and answers, by signature name."""

    version: int
    signatures: Mapping[str, Signature]
