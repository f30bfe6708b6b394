"""``CpuLinearMethod``: vLLM's linear method of a layer whose weight we own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    UnquantizedLinearMethod,
)

from vllm_sparse.buffers import add_buffer
from vllm_sparse.cpu.linear import CpuLinear
from vllm_sparse.cpu.products import PACKED, UNPACK
from vllm_sparse.cpu.weights import Weights, take_weight
from vllm_sparse.custom_ops import linear_tokens, register_linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_sparse.execution import Execution
    from vllm_sparse.owned import Selection
    from vllm_sparse.phases import TokenPhases


class CpuLinearMethod(LinearMethodBase):
    """Own the weight of an unquantized layer on a CPU.

    Args:
        inner: the method vLLM chose, which has a dense ``layer.weight``.
        selection: what is sparsified; None for a dense input.
        execution: the engine's choices.
        phases: phases of the step's tokens.
        counters: ``[2]`` int64, elements and non-zeros; becomes a buffer of the layer.
        after_load: called with the finished :class:`CpuLinear`, None if the layer has
            nothing of ours and stays vLLM's.
    """

    def __init__(
        self,
        inner: LinearMethodBase,
        *,
        selection: Selection | None,
        execution: Execution,
        phases: TokenPhases,
        counters: torch.Tensor,
        after_load: Callable[[CpuLinear | None], None],
    ) -> None:
        self.inner = inner
        self._selection = selection
        self._execution = execution
        self._phases = phases
        self._counters = counters
        self._after_load = after_load
        self._linear: CpuLinear | None = None
        # Copies that were taken, until the layer is processed.
        self._taken: Weights | None = None
        self._processed = False
        self._outputs = self._in_features = 0
        # Class attributes of the base class would hide the inner method's.
        self.requires_device_loading = inner.requires_device_loading
        self.uses_meta_device = inner.uses_meta_device
        self.supports_pre_processed_weights = inner.supports_pre_processed_weights

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """Forward to the inner method."""
        self.inner.create_weights(*args, **kwargs)

    def take(self, layer: torch.nn.Module) -> bool:
        """Copy the complete weight into our layout; again when it was loaded again.

        Returns:
            True if ``layer.weight`` was replaced by an empty parameter.
        """
        weight: torch.Tensor = layer.weight.data  # type: ignore[assignment]
        # Convolutions and missing layers are vLLM's alone. A layer without copies stays
        # so: compiled code has its product.
        fits = weight.dim() == 2 and weight.numel() and not weight.is_meta
        if not fits or (self._processed and self._linear is None):
            return False
        self._outputs, self._in_features = weight.shape
        density, order = None, None
        if self._selection is not None:
            density = self._selection.density
            if self._selection.treatment is not None:
                self._selection.treatment.read(layer, weight)
                order = self._selection.treatment.parameters.channel_groups
        self._taken = take_weight(
            weight, density=density, execution=self._execution, order=order
        )
        # The weight that MLA's attention reads itself is marked, and must stay.
        read = getattr(layer, "_cpu_skip_gemm_dispatch", False)
        if not self._taken or read or self._execution.dense_fallback == "keep":
            return False
        # An attribute must stay: LoRA asks for its device, loaders for its loader.
        empty = torch.empty(0, dtype=weight.dtype, device=weight.device)
        parameter: Any = torch.nn.Parameter(empty, requires_grad=False)
        parameter.__class__ = type(layer.weight)
        vars(parameter).update(vars(layer.weight))
        layer.weight = parameter
        return True

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Own the weight; keep or drop vLLM's layout of it."""
        if self._taken is None:
            self.take(layer)
        # What dropping leaves, and vLLM's own packing.
        dropped = layer.weight.shape == (0,)
        if not dropped or not isinstance(self.inner, UnquantizedLinearMethod):
            self.inner.process_weights_after_loading(layer)
        weights, self._taken = self._taken, None
        processed, self._processed = self._processed, True
        product = None if dropped else partial(_stock, self.inner, layer)
        if self._linear is not None:
            if weights is not None:
                self._linear.set_weights(weights, product)
        elif weights:
            self._linear = CpuLinear(
                weights,
                product,
                in_features=self._in_features,
                selection=self._selection,
                phases=self._phases,
                always=self._execution.kernels == "on",
                fast=self._execution.leaves_steps_dense("cpu"),
            )
            add_buffer(layer, "key", register_linear(self._linear))
            add_buffer(layer, "counters", self._counters)
        if not processed:
            self._after_load(self._linear)

    def apply(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the product; ``x`` is ``[T, K]`` or ``[1, T, K]``."""
        if self._linear is None:
            result: torch.Tensor = self.inner.apply(layer, x, bias)
            return result
        return linear_tokens(
            x,
            bias,
            key=layer.vllm_sparse_key,  # type: ignore[arg-type]
            counters=layer.vllm_sparse_counters,  # type: ignore[arg-type]
            outputs=self._outputs,
        )

    def dense(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the product without sparsity, ``[T, O]`` of few tokens.

        By vLLM's weight where it is kept, so that ours is compared with it.
        """
        linear = self._linear
        if linear is None:
            result: torch.Tensor = self.inner.apply(layer, x, bias)
            return result
        # Unpacking a whole weight for one token would cost a lot.
        way = PACKED if linear.first == UNPACK else linear.first
        return linear.products[way](x, bias)

    def dequantize_weight(self, layer: torch.nn.Module) -> torch.Tensor:
        """Forward to the inner method."""
        weight: torch.Tensor = self.inner.dequantize_weight(layer)
        return weight

    def __getattr__(self, name: str) -> Any:
        """Expose the inner method's other attributes (vLLM looks some of them up)."""
        if name == "inner":  # not set yet: avoid recursion while unpickling
            raise AttributeError(name)
        return getattr(self.inner, name)


def _stock(
    inner: LinearMethodBase,
    layer: torch.nn.Module,
    x: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return vLLM's own product."""
    result: torch.Tensor = inner.apply(layer, x, bias)
    return result
