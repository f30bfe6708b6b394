"""The linears of a transformers model, grouped as vLLM fuses them.

q, k and v, and gate and up, read the same input. vLLM makes one layer of them, so they
get one selection of channels: by a factor that is computed over all their rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from nmsparse.targets import FUSED


@dataclass(frozen=True, slots=True, eq=False)
class FusedLinear:
    """Linears that read one input; most have a single part.

    Attributes:
        name: vLLM's name of the layer, such as ``model.layers.0.self_attn.qkv_proj``.
        parts: names in the transformers model to modules, in vLLM's order.
    """

    name: str
    parts: Mapping[str, nn.Module]

    @property
    def names(self) -> list[str]:
        """The fused name, then those of the parts: what a configuration may name."""
        return [self.name, *(part for part in self.parts if part != self.name)]

    @property
    def in_features(self) -> int:
        """K, which all parts share."""
        return int(weight_of(next(iter(self.parts.values()))).shape[1])

    @property
    def out_features(self) -> list[int]:
        """O of every part."""
        return [int(weight_of(module).shape[0]) for module in self.parts.values()]

    def weight(self) -> torch.Tensor:
        """Return the weight ``[O, K]`` of all parts, one below the other."""
        weights = [weight_of(module).detach() for module in self.parts.values()]
        return weights[0] if len(weights) == 1 else torch.cat(weights)


def fused_linears(model: nn.Module) -> list[FusedLinear]:
    """Return every linear of a model but its head, in the order of the model.

    Args:
        model: a causal language model of transformers, or one of its blocks.
    """
    # vLLM's head is no linear layer of its own, so no target reaches it.
    head = getattr(model, "get_output_embeddings", lambda: None)()
    siblings: dict[str, dict[str, nn.Module]] = defaultdict(dict)
    for name, module in model.named_modules():
        if is_linear(module) and module is not head:
            parent, dot, last = name.rpartition(".")
            siblings[parent + dot][last] = module
    found: list[FusedLinear] = []
    for prefix, children in siblings.items():
        for fused, parts in FUSED.items():
            if all(part in children for part in parts):
                taken = {prefix + part: children.pop(part) for part in parts}
                found.append(FusedLinear(prefix + fused, taken))
        found += [FusedLinear(prefix + x, {prefix + x: m}) for x, m in children.items()]
    return found


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer: ``Linear``, or GPT-2's ``Conv1D``."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def weight_of(module: nn.Module) -> torch.Tensor:
    """Return the weight ``[O, K]`` of a linear layer, a view for ``Conv1D``."""
    weight = module.get_parameter("weight")
    return weight if isinstance(module, nn.Linear) else weight.t()


def bias_of(module: nn.Module) -> torch.Tensor | None:
    """Return the bias ``[O]`` of a linear layer, None if it has none."""
    bias = getattr(module, "bias", None)
    assert bias is None or isinstance(bias, torch.Tensor)
    return bias
