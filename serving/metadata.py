"""What a server says about its models: the values that a client hands out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


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
