"""``CpuLinearMethod``: vLLM's linear method of a layer whose weight we own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    UnquantizedLinearMethod,
)

from vllm_sparse.cpu.linear import CpuLinear
from vllm_sparse.cpu.weights import Weights, take_weight
from vllm_sparse.custom_ops import linear_tokens, register_linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_sparse.cpu.linear import Selection
    from vllm_sparse.execution import Execution
    from vllm_sparse.phases import TokenPhases


class CpuLinearMethod(LinearMethodBase):
    """Own the weight of an unquantized layer on a CPU.

    Args:
        inner: the method vLLM chose, which has a dense ``layer.weight``.
        selection: what is sparsified; None for a dense input.
        execution: the engine's choices.
        phases: phases of the step's tokens.
        counters: ``[2]`` int64, elements and non-zeros.
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
        self._weights: Weights | None = None
        self._outputs = self._in_features = 0
        # Class attributes of the base class would hide the inner method's.
        self.requires_device_loading = inner.requires_device_loading
        self.uses_meta_device = inner.uses_meta_device
        self.supports_pre_processed_weights = inner.supports_pre_processed_weights

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """Forward to the inner method."""
        self.inner.create_weights(*args, **kwargs)

    def take(self, layer: torch.nn.Module) -> bool:
        """Copy the complete weight into our layout, once.

        Returns:
            True if ``layer.weight`` was replaced by an empty parameter.
        """
        weight: torch.Tensor = layer.weight.data  # type: ignore[assignment]
        self._outputs, self._in_features = weight.shape
        density = None if self._selection is None else self._selection.density
        self._weights = take_weight(weight, density=density, execution=self._execution)
        if not self._weights or self._execution.dense_fallback == "keep":
            return False
        # An attribute must stay: LoRA asks for its device, loaders for its loader.
        kept = vars(layer.weight)
        empty = torch.empty(0, dtype=weight.dtype, device=weight.device)
        layer.weight = torch.nn.Parameter(empty, requires_grad=False)
        vars(layer.weight).update(kept)
        return True

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Own the weight; keep or drop vLLM's layout of it."""
        first = self._weights is None
        if first:
            self.take(layer)
        dropped = not layer.weight.numel()  # type: ignore[operator]
        if not dropped or not isinstance(self.inner, UnquantizedLinearMethod):
            self.inner.process_weights_after_loading(layer)
        if self._linear is not None:
            return
        if not self._weights:
            self._after_load(None)
            return

        def stock(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            result: torch.Tensor = self.inner.apply(layer, x, bias)
            return result

        self._linear = CpuLinear(
            self._weights,
            None if dropped else stock,
            in_features=self._in_features,
            selection=self._selection,
            phases=self._phases,
            counters=self._counters,
            always=self._execution.kernels == "on",
        )
        register_linear(self._counters, self._linear)
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
        counters: torch.Tensor = layer.vllm_sparse_counters  # type: ignore[assignment]
        return linear_tokens(x, bias, counters, self._outputs)

    def dequantize_weight(self, layer: torch.nn.Module) -> torch.Tensor:
        """Forward to the inner method."""
        weight: torch.Tensor = self.inner.dequantize_weight(layer)
        return weight

    def __getattr__(self, name: str) -> Any:
        """Expose the inner method's other attributes (vLLM looks some of them up)."""
        if name == "inner":  # not set yet: avoid recursion while unpickling
            raise AttributeError(name)
        return getattr(self.inner, name)
