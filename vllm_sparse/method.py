"""``SparseLinearMethod``: sparsify a linear's input, then let vLLM's method run.

It wraps any linear method (unquantized, FP8, INT8, INT4), so weights, their layout and
their kernels stay vLLM's. LoRA calls ``quant_method.apply`` with the base layer, so the
adapter sees the dense activation, as in training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.model_executor.layers.linear import LinearMethodBase, RowParallelLinear

from vllm_sparse.custom_ops import sparsify_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


class SparseLinearMethod(LinearMethodBase):
    """Apply ``inner`` to a sparsified input.

    Args:
        inner: the method vLLM chose for the layer.
        kept: N of the pattern.
        group: M of the pattern, or K for unstructured selection.
        phase: code of the tokens to sparsify, 0 for all.
        criterion: name of the score.
        after_load: called once the layer's weights are in place.
    """

    def __init__(
        self,
        inner: LinearMethodBase,
        *,
        kept: int,
        group: int,
        phase: int,
        criterion: str,
        after_load: Callable[[], None],
    ) -> None:
        self.inner = inner
        self.kept = kept
        self.group = group
        self.phase = phase
        self.criterion = criterion
        self._after_load = after_load
        # Of the weight that the inner method reads at every call.
        self.weight_bytes = 0
        # Class attributes of the base class would hide the inner method's.
        self.requires_device_loading = inner.requires_device_loading
        self.uses_meta_device = inner.uses_meta_device
        self.supports_pre_processed_weights = inner.supports_pre_processed_weights

    def create_weights(self, *args: Any, **kwargs: Any) -> None:
        """Forward to the inner method."""
        self.inner.create_weights(*args, **kwargs)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let the inner method repack the weights."""
        loaded = parameter_bytes(layer)
        self.inner.process_weights_after_loading(layer)
        self.weight_bytes = held_bytes(layer, loaded)
        self._after_load()

    def apply(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return ``inner(sparsify(x))``; ``x`` is ``[T, K]`` or ``[1, T, K]``."""
        sparse = sparsify_tokens(
            x,
            layer.vllm_sparse_codes,  # type: ignore[arg-type]
            layer.vllm_sparse_counters,  # type: ignore[arg-type]
            kept=self.kept,
            group=self.group,
            phase=self.phase,
            criterion=self.criterion,
        )
        result: torch.Tensor = self.inner.apply(layer, sparse, bias)
        return result

    def dense(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the product without sparsity, ``[T, O]``."""
        result: torch.Tensor = self.inner.apply(layer, x, bias)
        return result

    def dequantize_weight(self, layer: torch.nn.Module) -> torch.Tensor:
        """Forward to the inner method."""
        weight: torch.Tensor = self.inner.dequantize_weight(layer)
        return weight

    def __getattr__(self, name: str) -> Any:
        """Expose the inner method's other attributes (vLLM looks some of them up)."""
        if name == "inner":  # not set yet: avoid recursion while unpickling
            raise AttributeError(name)
        return getattr(self.inner, name)


def parameter_bytes(layer: torch.nn.Module) -> int:
    """Return the bytes of a layer's own parameters: its weight, scales and bias."""
    return sum(x.nbytes for x in layer.parameters(recurse=False))


def held_bytes(layer: torch.nn.Module, loaded: int) -> int:
    """Return the bytes of a processed weight.

    Args:
        layer: with its weight processed.
        loaded: bytes of its parameters before.
    """
    found = parameter_bytes(layer)
    # Some methods move the weight into a form of their kernels, and leave scales.
    return found if found >= loaded / 8 else loaded


def method_name(layer: Any) -> str:
    """Return which of vLLM's methods a layer has, for people to read."""
    return f"vLLM's {type(layer.quant_method).__name__}"


def product_bias(layer: Any) -> torch.Tensor | None:
    """Return the bias that the product of a layer gets on this rank."""
    if getattr(layer, "skip_bias_add", False):
        return None
    if isinstance(layer, RowParallelLinear) and layer.tp_rank > 0:
        return None  # added once, on the first rank
    bias: torch.Tensor | None = getattr(layer, "bias", None)
    return bias


def call_after_load(layer: Any, callback: Callable[[], None]) -> None:
    """Let a layer that stays vLLM's tell that its weights are in place."""
    method = layer.quant_method
    original = method.process_weights_after_loading

    def process_weights_after_loading(module: torch.nn.Module) -> None:
        original(module)
        callback()

    method.process_weights_after_loading = process_weights_after_loading
