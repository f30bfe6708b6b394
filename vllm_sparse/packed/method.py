"""``PackedLinearMethod``: load a packed weight into a linear layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.utils import set_weight_attrs

from nmsparse.packed_manifest import BITMASK, VALUES
from vllm_sparse.packed.keep import keep_packed
from vllm_sparse.packed.shards import Shards

# Attributes of a layer that wait for the two tensors of the file.
_PLACEHOLDERS = {BITMASK.removeprefix("."): BITMASK, VALUES.removeprefix("."): VALUES}


# Registered by name, so that a layer gives the loader it gives the inner method.
@register_weight_loader_v2_supported_method
class PackedLinearMethod(LinearMethodBase):
    """vLLM's unquantized method for a layer whose weight may be packed in the file.

    Args:
        packed_modules: the model's names of fused layers and their parts.
    """

    def __init__(self, packed_modules: Mapping[str, Sequence[str]]) -> None:
        self.inner = UnquantizedLinearMethod()
        self.kept = False
        self._packed_modules = packed_modules
        self._made_up = _has_dummy_weights()
        self._shards: Shards | None = None

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        """Let the inner method make ``weight``, and add places for packed shards."""
        self._shards = Shards(
            layer,
            attributes["weight_loader"],
            self._packed_modules,
            partial(self.on_complete, layer),
        )
        attributes["weight_loader"] = self._shards.dense
        self.inner.create_weights(
            layer,
            input_size_per_partition,
            output_partition_sizes,
            input_size,
            output_size,
            params_dtype,
            **attributes,
        )
        for name, suffix in _PLACEHOLDERS.items():
            dtype = torch.uint8 if suffix == BITMASK else params_dtype
            empty = torch.nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
            layer.register_parameter(name, empty)
            set_weight_attrs(
                empty, {"weight_loader": _half_loader(self._shards, suffix)}
            )

    def on_complete(self, layer: torch.nn.Module) -> None:
        """Take a layer whose last shard has just arrived, while others still load."""
        self.kept = keep_packed(layer)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Refuse an incomplete layer; let vLLM lay out a dense weight.

        Raises:
            PackedFormatError: naming the tensor that is missing.
        """
        self._finish(layer)
        if not self.kept:
            self.inner.process_weights_after_loading(layer)

    def apply(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the product with the dense weight."""
        result: torch.Tensor = self.inner.apply(layer, x, bias)
        return result

    def _finish(self, layer: Any) -> None:
        """Check that all weights came, and remove what only loading needed."""
        shards, self._shards = self._shards, None
        if shards is None:
            return
        # Some models load a weight in their own way, and made-up ones do not arrive.
        ours = getattr(layer.weight, "weight_loader", None) == shards.dense
        if (ours or shards.packed) and not self._made_up:
            shards.finish()
        if ours:
            # Later updates are dense and come as often as they like.
            layer.weight.weight_loader = shards.load_dense
        for name in _PLACEHOLDERS:
            delattr(layer, name)


def _half_loader(shards: Shards, suffix: str) -> Callable[..., None]:
    """Return a loader of one of the two tensors; vLLM asks loaders for their name."""

    def load_half(parameter: Any, loaded: torch.Tensor, *shard: Any) -> None:
        shards.half(suffix, parameter, loaded, *shard)

    return load_half


def _has_dummy_weights() -> bool:
    """Return whether this engine makes up its weights (``--load-format dummy``)."""
    vllm_config = get_current_vllm_config_or_none()
    return vllm_config is not None and vllm_config.load_config.load_format == "dummy"
