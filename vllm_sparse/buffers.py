"""Tensors of ours in vLLM's layers."""

from __future__ import annotations

import torch

# In front of the names of our buffers.
PREFIX = "vllm_sparse_"


def add_buffer(layer: torch.nn.Module, name: str, tensor: torch.Tensor | None) -> None:
    """Register a tensor as a buffer of a layer.

    A buffer, so that compiled code takes it as an input. Not persistent, so that weight
    loading does not look for it. And with nothing to load, so that a reload of weights
    does not wait for it: vLLM counts the elements of a layer that have arrived.

    Args:
        layer: of vLLM.
        name: without our prefix.
        tensor: None for a tensor that this layer does not have.
    """
    if tensor is not None:
        tensor.weight_loader_numel = 0  # type: ignore[attr-defined]
    layer.register_buffer(PREFIX + name, tensor, persistent=False)
