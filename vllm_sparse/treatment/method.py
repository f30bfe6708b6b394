"""``TreatedLinearMethod``: a treatment around the product of any of vLLM's methods."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vllm_sparse.buffers import add_buffer
from vllm_sparse.method import SparseLinearMethod, held_bytes, parameter_bytes
from vllm_sparse.treatment import ops  # noqa: F401 (registers the ops)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.model_executor.layers.linear import LinearMethodBase

    from vllm_sparse.treatment.layer import Treatment

# Tensors the ops take, as buffers of the layer.
_PARAMETERS = (
    "factor",
    "channel_shift",
    "output_scale",
    "channel_groups",
    "low_rank_in",
    "low_rank_out",
)


class TreatedLinearMethod(SparseLinearMethod):
    """Apply ``inner`` to prepared tokens, and finish its product.

    Args:
        inner: the method vLLM chose for the layer.
        layer: the layer; it gets the tensors of the treatment as buffers.
        treatment: what is done to tokens and product.
        phase: codes of the tokens to sparsify, 0 for all.
        after_load: called once the layer's weights are in place.
    """

    def __init__(
        self,
        inner: LinearMethodBase,
        *,
        layer: torch.nn.Module,
        treatment: Treatment,
        phase: int,
        after_load: Callable[[], None],
    ) -> None:
        online = treatment.online
        super().__init__(
            inner,
            kept=treatment.pattern.n,
            group=treatment.pattern.m,
            phase=phase,
            criterion=online.criterion,
            after_load=after_load,
        )
        self.treatment = treatment
        self.mitigation = ",".join(online.mitigation)
        self._finishes = treatment.finishes
        for name in _PARAMETERS:
            tensor = getattr(treatment.parameters, name)
            add_buffer(layer, name, tensor)
        for name in ("row_sum", "constant"):
            tensor = getattr(treatment.constants, name)
            add_buffer(layer, name, tensor)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let the inner method repack the weights; take what the treatment needs."""
        done = self.treatment.before_processing(layer, self.inner)
        loaded = parameter_bytes(layer)
        self.inner.process_weights_after_loading(layer)
        self.weight_bytes = held_bytes(layer, loaded)
        if not done:
            dtype: Any = layer.params_dtype
            self.treatment.measure(partial(self.inner.apply, layer), dtype)
        self._after_load()

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return ``finish(inner(prepare(x)))``, for ``[T, K]`` or ``[1, T, K]``."""
        values, scale, token_shift, residual = torch.ops.vllm_sparse.prepare_tokens(
            x,
            layer.vllm_sparse_codes,
            layer.vllm_sparse_counters,
            layer.vllm_sparse_factor,
            layer.vllm_sparse_channel_shift,
            layer.vllm_sparse_output_scale,
            layer.vllm_sparse_channel_groups,
            self.kept,
            self.group,
            self.phase,
            self.criterion,
            self.mitigation,
        )
        product: torch.Tensor = self.inner.apply(layer, values, bias)
        if not self._finishes:
            return product
        result: torch.Tensor = torch.ops.vllm_sparse.finish_tokens(
            product,
            bias,
            layer.vllm_sparse_codes,
            scale,
            token_shift,
            residual,
            layer.vllm_sparse_row_sum,
            layer.vllm_sparse_constant,
            layer.vllm_sparse_output_scale,
            layer.vllm_sparse_low_rank_in,
            layer.vllm_sparse_low_rank_out,
            self.phase,
        )
        return result
