"""Offline half of vllm-sparse: Hugging Face folder in, Hugging Face folder out.

:func:`prune` prunes a model, :func:`verify` checks what it made, :func:`build_report`
describes it. :func:`annotate` makes a folder describe its activation sparsity,
:func:`pack` and :func:`unpack` convert pruned weights to the packed format and back,
and :func:`convert_embedded_model` makes a real model where there is no network. Never
imports vLLM.

Importing this package is cheap: names below are loaded on first use, so torch and
transformers are imported only by the functions that need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offline_prune.annotation import annotate
    from offline_prune.api import prune
    from offline_prune.calibration.config import CalibrationConfig
    from offline_prune.config import PruneConfig
    from offline_prune.embedded import convert_embedded_model
    from offline_prune.errors import InputError, MissingDependencyError, UserError
    from offline_prune.packing.convert import Conversion, pack, unpack
    from offline_prune.pipeline.run import PruneReport
    from offline_prune.report.build import build_report
    from offline_prune.report.results import Results, read_results
    from offline_prune.verification.verify import Verification, verify

__version__ = "0.1.0"

_EXPORTS = {
    "CalibrationConfig": "offline_prune.calibration.config",
    "Conversion": "offline_prune.packing.convert",
    "InputError": "offline_prune.errors",
    "MissingDependencyError": "offline_prune.errors",
    "PruneConfig": "offline_prune.config",
    "PruneReport": "offline_prune.pipeline.run",
    "Results": "offline_prune.report.results",
    "UserError": "offline_prune.errors",
    "Verification": "offline_prune.verification.verify",
    "annotate": "offline_prune.annotation",
    "convert_embedded_model": "offline_prune.embedded",
    "build_report": "offline_prune.report.build",
    "pack": "offline_prune.packing.convert",
    "prune": "offline_prune.api",
    "read_results": "offline_prune.report.results",
    "unpack": "offline_prune.packing.convert",
    "verify": "offline_prune.verification.verify",
}

__all__ = [
    "CalibrationConfig",
    "Conversion",
    "InputError",
    "MissingDependencyError",
    "PruneConfig",
    "PruneReport",
    "Results",
    "UserError",
    "Verification",
    "__version__",
    "annotate",
    "build_report",
    "convert_embedded_model",
    "pack",
    "prune",
    "read_results",
    "unpack",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'offline_prune' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
