"""Optimizers and schedules for Keras 3, usable without the rest of this project."""

from custom_optimizers.schedules import Triangular, WarmUp

__all__ = ["Triangular", "WarmUp"]
