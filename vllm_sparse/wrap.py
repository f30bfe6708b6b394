"""A layer that vLLM multiplies: its input is sparsified before."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from nmsparse.criteria import DEFAULT_CRITERION
from vllm_sparse.buffers import add_buffer
from vllm_sparse.method import SparseLinearMethod
from vllm_sparse.treatment.method import TreatedLinearMethod

if TYPE_CHECKING:
    from vllm.model_executor.layers.linear import LinearBase

    from vllm_sparse.state import LayerState
    from vllm_sparse.treatment.layer import Treatment


def wrap(
    layer: LinearBase,
    state: LayerState,
    treatment: Treatment | None,
    *,
    codes: torch.Tensor,
    phase: int,
    after_load: Callable[[], None],
) -> None:
    """Put a method that sparsifies around the one vLLM chose.

    Args:
        layer: just built; its state has a pattern.
        state: what is known about it; it gets counters.
        treatment: what is done beyond magnitude; None for nothing.
        codes: phases of the step's tokens, on the engine's device.
        phase: codes of the tokens to sparsify, 0 for all.
        after_load: called once the layer's weights are in place.
    """
    assert state.pattern is not None
    state.counters = torch.zeros(2, dtype=torch.int64, device=codes.device)
    add_buffer(layer, "codes", codes)
    add_buffer(layer, "counters", state.counters)
    if treatment is not None:
        method: SparseLinearMethod = TreatedLinearMethod(
            layer.quant_method,
            layer=layer,
            treatment=treatment,
            phase=phase,
            after_load=after_load,
        )
    else:
        # K on this rank: a shard for row-parallel layers.
        k_local = getattr(layer, "input_size_per_partition", layer.input_size)
        kept, group = state.pattern.group(k_local)
        method = SparseLinearMethod(
            layer.quant_method,
            kept=kept,
            group=group,
            phase=phase,
            # Without a treatment: what keeps all is no choice, whatever its name.
            criterion=DEFAULT_CRITERION,
            after_load=after_load,
        )
    layer.quant_method = method
    # Sessions outlive engines; what holds their layers must not.
    state.find_method = weakref.ref(method)
