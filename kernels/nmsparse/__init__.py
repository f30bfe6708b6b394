"""N:M sparsity vocabulary and operations: tensors in, tensors out.

N:M means **at most N non-zeros in every M consecutive elements** along ``in_features``.
This package is the lowest layer of vllm-sparse: the pruner and the vLLM plugin both
import it, and it imports neither of them.

Importing it is cheap: names below are loaded on first use, so ``torch`` is imported
only by the operations that need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmsparse.config import ParametersFile, Phase, SparsityConfig
    from nmsparse.dispatch import explain
    from nmsparse.keep import select_keep, verify
    from nmsparse.native.memory import k_major
    from nmsparse.ops.linear import linear
    from nmsparse.ops.online import Online, online_linear, sparsify_online
    from nmsparse.ops.packed import packed_linear
    from nmsparse.ops.sparsify import Correction, compact, sparsify
    from nmsparse.packed import PackedWeight
    from nmsparse.parameters import Parameters, read_parameters, write_parameters
    from nmsparse.pattern import NMPattern, Pattern, Unstructured, parse_pattern
    from nmsparse.sidecar import SIDECAR_NAME, read_sidecar, write_sidecar

_EXPORTS = {
    "Correction": "nmsparse.ops.sparsify",
    "NMPattern": "nmsparse.pattern",
    "Online": "nmsparse.ops.online",
    "PackedWeight": "nmsparse.packed",
    "Parameters": "nmsparse.parameters",
    "ParametersFile": "nmsparse.config",
    "Pattern": "nmsparse.pattern",
    "Phase": "nmsparse.config",
    "SIDECAR_NAME": "nmsparse.sidecar",
    "SparsityConfig": "nmsparse.config",
    "Unstructured": "nmsparse.pattern",
    "compact": "nmsparse.ops.sparsify",
    "explain": "nmsparse.dispatch",
    "k_major": "nmsparse.native.memory",
    "linear": "nmsparse.ops.linear",
    "online_linear": "nmsparse.ops.online",
    "packed_linear": "nmsparse.ops.packed",
    "parse_pattern": "nmsparse.pattern",
    "read_parameters": "nmsparse.parameters",
    "read_sidecar": "nmsparse.sidecar",
    "select_keep": "nmsparse.keep",
    "sparsify": "nmsparse.ops.sparsify",
    "sparsify_online": "nmsparse.ops.online",
    "verify": "nmsparse.keep",
    "write_parameters": "nmsparse.parameters",
    "write_sidecar": "nmsparse.sidecar",
}

__all__ = [
    "SIDECAR_NAME",
    "Correction",
    "NMPattern",
    "Online",
    "PackedWeight",
    "Parameters",
    "ParametersFile",
    "Pattern",
    "Phase",
    "SparsityConfig",
    "Unstructured",
    "compact",
    "explain",
    "k_major",
    "linear",
    "online_linear",
    "packed_linear",
    "parse_pattern",
    "read_parameters",
    "read_sidecar",
    "select_keep",
    "sparsify",
    "sparsify_online",
    "verify",
    "write_parameters",
    "write_sidecar",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'nmsparse' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
