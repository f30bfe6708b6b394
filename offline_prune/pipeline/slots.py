"""Where a bias can be saved so that stock transformers and stock vLLM load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from offline_prune.errors import InputError
from offline_prune.pipeline.layers import Layer

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")

# Keys of config.json that give all these layers a bias, in transformers and in vLLM
# alike (both were read: Qwen3's attention_bias is not here, because vLLM gives its
# o_proj none; Mistral, Qwen2 and Gemma have no such key).
SWITCHES: dict[str, dict[str, tuple[str, ...]]] = {
    "LlamaForCausalLM": {"attention_bias": _ATTENTION, "mlp_bias": _MLP},
    "Gemma2ForCausalLM": {"attention_bias": _ATTENTION},
    "Gemma3ForCausalLM": {"attention_bias": _ATTENTION},
}


@dataclass(frozen=True, slots=True)
class BiasSlots:
    """Which layers can have a bias.

    Attributes:
        switches: keys of ``config.json`` to switch on, with their layers' names.
    """

    switches: dict[str, tuple[str, ...]]

    @classmethod
    def of(
        cls, architecture: str, config: dict[str, Any], layers: Sequence[Layer]
    ) -> BiasSlots:
        """Find the keys that would give some of ``layers`` a bias they lack.

        Args:
            architecture: name of the model class.
            config: the model's ``config.json``.
            layers: all prunable layers.
        """
        lacking = {layer.kind for layer in layers if not has_bias(layer)}
        found = {
            key: kinds
            for key, kinds in SWITCHES.get(architecture, {}).items()
            if not config.get(key) and lacking & set(kinds)
        }
        return cls(found)

    def fits(self, layer: Layer) -> bool:
        """Return whether a layer has a bias or can be given one."""
        return has_bias(layer) or (layer.expert is None and self.key(layer) is not None)

    def key(self, layer: Layer) -> str | None:
        """Return the key of ``config.json`` that gives the layer its bias."""
        for key, kinds in self.switches.items():
            if layer.kind in kinds:
                return key
        return None

    def check(self, architecture: str, layers: Sequence[Layer], method: str) -> None:
        """Refuse a model in which some layer cannot have a bias.

        Raises:
            InputError: naming the first one.
        """
        for layer in layers:
            if not self.fits(layer):
                kinds = sorted({one.kind for one in layers if not self.fits(one)})
                raise InputError(
                    f"{method} needs a bias on {layer.name}, and {architecture} has no "
                    f"room for one on {', '.join(kinds)} that stock transformers and "
                    "vLLM would load. Expected another compensation (scales are folded "
                    "into the weights), or --bias available to correct the others only."
                )


def has_bias(layer: Layer) -> bool:
    """Return whether the model's layer has a bias already."""
    return layer.expert is None and getattr(layer.module, "bias", None) is not None


def add_bias(layer: Layer, change: torch.Tensor) -> torch.Tensor:
    """Add to a layer's bias, which is made if need be, and return it.

    Args:
        layer: a loaded layer.
        change: float32 ``[O]``.
    """
    module: Any = layer.module
    dtype, device = layer.view().dtype, layer.view().device
    old = getattr(module, "bias", None)
    total = change.to(device) if old is None else old.data.float() + change.to(device)
    module.bias = nn.Parameter(total.to(dtype), requires_grad=False)
    bias: torch.Tensor = module.bias.data
    return bias
