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
    from nmsparse.config import Phase, SparsityConfig
    from nmsparse.dispatch import explain
    from nmsparse.keep import select_keep, verify
    from nmsparse.native.memory import k_major
    from nmsparse.ops.linear import linear
    from nmsparse.ops.packed import packed_linear
    from nmsparse.ops.sparsify import Correction, compact, sparsify
    from nmsparse.packed import PackedWeight
    from nmsparse.pattern import NMPattern, Pattern, Unstructured, parse_pattern
    from nmsparse.sidecar import SIDECAR_NAME, read_sidecar, write_sidecar

_EXPORTS = {
    "Correction": "nmsparse.ops.sparsify",
    "NMPattern": "nmsparse.pattern",
    "PackedWeight": "nmsparse.packed",
    "Pattern": "nmsparse.pattern",
    "Phase": "nmsparse.config",
    "SIDECAR_NAME": "nmsparse.sidecar",
    "SparsityConfig": "nmsparse.config",
    "Unstructured": "nmsparse.pattern",
    "compact": "nmsparse.ops.sparsify",
    "explain": "nmsparse.dispatch",
    "k_major": "nmsparse.native.memory",
    "linear": "nmsparse.ops.linear",
    "packed_linear": "nmsparse.ops.packed",
    "parse_pattern": "nmsparse.pattern",
    "read_sidecar": "nmsparse.sidecar",
    "select_keep": "nmsparse.keep",
    "sparsify": "nmsparse.ops.sparsify",
    "verify": "nmsparse.keep",
    "write_sidecar": "nmsparse.sidecar",
}

__all__ = [
    "SIDECAR_NAME",
    "Correction",
    "NMPattern",
    "PackedWeight",
    "Pattern",
    "Phase",
    "SparsityConfig",
    "Unstructured",
    "compact",
    "explain",
    "k_major",
    "linear",
    "packed_linear",
    "parse_pattern",
    "read_sidecar",
    "select_keep",
    "sparsify",
    "verify",
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
