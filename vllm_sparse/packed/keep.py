"""What happens to a weight that is complete: the one place that decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_sparse.cpu.method import CpuLinearMethod

if TYPE_CHECKING:
    import torch


def keep_packed(layer: torch.nn.Module) -> bool:
    """Decide about a layer whose last shard has just arrived.

    ``layer.weight`` is ``[O, K]`` of this rank, fused, on its final device. Layers come
    one by one while the model loads, so a weight that is released here is not in memory
    together with those of later layers.

    Returns:
        True if the weight was taken over (and ``layer.weight`` left as an empty
        parameter), False to leave it to vLLM's dense path.
    """
    method = layer.quant_method
    return isinstance(method, CpuLinearMethod) and method.take(layer)
