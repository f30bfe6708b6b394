"""``TappedMethod``: a sparse layer's method, with a tap on its input and result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.model_executor.layers.linear import LinearMethodBase

from vllm_sparse.canary.ops import tap_token

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


class TappedMethod(LinearMethodBase):
    """Run ``inner`` unchanged, and copy one token of sampled steps.

    Args:
        inner: our method of a sparse layer.
        reloaded: called when the layer's weight was loaded (again).
    """

    def __init__(self, inner: Any, reloaded: Callable[[], None]) -> None:
        self.inner = inner
        self._reloaded = reloaded
        # Class attributes of the base class would hide the inner method's.
        self.requires_device_loading = inner.requires_device_loading
        self.uses_meta_device = inner.uses_meta_device
        self.supports_pre_processed_weights = inner.supports_pre_processed_weights

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """Forward to the inner method."""
        self.inner.create_weights(*args, **kwargs)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Forward to the inner method."""
        self.inner.process_weights_after_loading(layer)
        self._reloaded()

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what the inner method returns."""
        y: torch.Tensor = self.inner.apply(layer, x, bias)
        tap_token(
            x,
            y,
            layer.vllm_sparse_canary_row,
            layer.vllm_sparse_canary_before,
            layer.vllm_sparse_canary_after,
        )
        return y

    def dequantize_weight(self, layer: torch.nn.Module) -> torch.Tensor:
        """Forward to the inner method."""
        weight: torch.Tensor = self.inner.dequantize_weight(layer)
        return weight

    def __getattr__(self, name: str) -> Any:
        """Expose the inner method's other attributes (vLLM looks some of them up)."""
        if name == "inner":  # not set yet: avoid recursion while unpickling
            raise AttributeError(name)
        return getattr(self.inner, name)
