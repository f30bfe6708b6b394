"""Calibration data: what a model reads while its layers are measured."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from offline_prune.calibration.config import CalibrationConfig

if TYPE_CHECKING:
    from offline_prune.calibration.data import (
        CalibrationSet,
        load_calibration,
        split_held_out,
    )

_LAZY = ("CalibrationSet", "load_calibration", "split_held_out")

__all__ = [
    "CalibrationConfig",
    "CalibrationSet",
    "load_calibration",
    "split_held_out",
]


def __getattr__(name: str) -> Any:
    """Load a name that needs torch on first use."""
    if name not in _LAZY:
        raise AttributeError(
            f"module 'offline_prune.calibration' has no attribute {name!r}"
        )
    return getattr(importlib.import_module("offline_prune.calibration.data"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
