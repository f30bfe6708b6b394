"""Memory of one rank: weights, copies of ours, and what is left for the KV cache."""

from __future__ import annotations

from vllm_sparse.execution import DROP
from vllm_sparse.plan.layers import Layer
from vllm_sparse.plan.results import Memory
from vllm_sparse.plan.steps import Rank, Setting
from vllm_sparse.plan.traffic import packed_bytes


def holding(
    rank: Rank, setting: Setting, *, fallback: str, utilization: float
) -> Memory:
    """Return what one rank holds.

    On a GPU rows are the weight itself in another order, and take nothing. On a CPU
    they are a copy, beside vLLM's layout or instead of it.

    Args:
        rank: the shares of everything.
        setting: how it is run.
        fallback: ``keep`` or ``drop`` vLLM's layout of layers with a copy of ours on a
            CPU.
        utilization: share of the memory that vLLM takes.
    """
    copies = freed = 0.0
    for layer in rank.layers:
        kept = setting.holds(layer)
        # A layer whose prompts alone are sparse has its copy too.
        listed = kept.listed or (
            not setting.decode and layer.pattern is not None and not layer.no_kernel
        )
        if kept.packed:
            copies += packed_bytes(layer, 1 - layer.zeros, offsets=True)
        if setting.machine.device == "cpu" and (kept.packed or listed):
            if not kept.packed:
                copies += _rows(layer)
            freed += layer.dense_bytes * (fallback == DROP)
    total = rank.weights + copies - freed
    memory = setting.machine.memory
    sequence = rank.cache.sequence_bytes(setting.context)
    free = None if memory is None else memory * utilization - total
    fit = None if free is None or not sequence else max(0, int(free // sequence))
    return Memory(
        weights=rank.weights,
        copies=copies,
        freed=freed,
        total=total,
        kv_token=rank.cache.token_bytes,
        kv_sequence=sequence,
        free=free,
        sequences=fit,
        tokens=None if fit is None else fit * setting.context,
    )


def _rows(layer: Layer) -> int:
    """Return bytes of K-major rows of a CPU, with their padding."""
    from vllm_sparse.cli.memory import Linear

    size = round(layer.nbytes / layer.elements)
    return Linear(layer.names, layer.out_features, layer.in_features, size).rows
