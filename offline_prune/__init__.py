"""Offline half of vllm-sparse: Hugging Face folder in, Hugging Face folder out.

Today: :func:`annotate` makes a folder describe its activation sparsity, :func:`pack`
and :func:`unpack` convert pruned weights to the packed format and back, and
:func:`convert_embedded_model` makes a real model where there is no network. Never
imports vLLM.

Importing this package is cheap: names below are loaded on first use, so torch and
transformers are imported only by the functions that need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offline_prune.annotation import annotate
    from offline_prune.embedded import convert_embedded_model
    from offline_prune.errors import InputError, MissingDependencyError, UserError
    from offline_prune.packing.convert import Conversion, pack, unpack

__version__ = "0.1.0"

_EXPORTS = {
    "Conversion": "offline_prune.packing.convert",
    "InputError": "offline_prune.errors",
    "MissingDependencyError": "offline_prune.errors",
    "UserError": "offline_prune.errors",
    "annotate": "offline_prune.annotation",
    "convert_embedded_model": "offline_prune.embedded",
    "pack": "offline_prune.packing.convert",
    "unpack": "offline_prune.packing.convert",
}

__all__ = [
    "Conversion",
    "InputError",
    "MissingDependencyError",
    "UserError",
    "__version__",
    "annotate",
    "convert_embedded_model",
    "pack",
    "unpack",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'offline_prune' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
