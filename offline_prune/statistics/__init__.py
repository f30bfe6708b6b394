"""Statistics of calibration inputs, one object a linear. Importing loads no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from offline_prune.statistics.needs import Need

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics

__all__ = ["InputStatistics", "Need"]


def __getattr__(name: str) -> Any:
    """Load :class:`InputStatistics` on first use."""
    if name != "InputStatistics":
        raise AttributeError(
            f"module 'offline_prune.statistics' has no attribute {name!r}"
        )
    module = importlib.import_module("offline_prune.statistics.inputs")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
