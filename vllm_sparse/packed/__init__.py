"""Seam 2: vLLM opens a packed checkpoint by the name in its ``config.json``."""

from __future__ import annotations


def register_packed() -> None:
    """Make ``quant_method: vllm_sparse`` known to vLLM, once."""
    from vllm.model_executor.layers.quantization import (
        QUANTIZATION_METHODS,
        register_quantization_config,
    )

    from nmsparse.packed_manifest import QUANT_METHOD
    from vllm_sparse.packed.config import PackedConfig

    if QUANT_METHOD not in QUANTIZATION_METHODS:
        register_quantization_config(QUANT_METHOD)(PackedConfig)
