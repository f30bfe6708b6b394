"""Experts of a mixture: transformers holds them stacked, in one module.

The module gets all tokens and which experts each goes to; the input of one expert is
cut out here, and the input of its down projection computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def is_experts(module: nn.Module) -> bool:
    """Return whether the module holds experts as ``[E, 2I, H]`` and ``[E, H, I]``."""
    up = getattr(module, "gate_up_proj", None)
    down = getattr(module, "down_proj", None)
    if not (isinstance(up, nn.Parameter) and isinstance(down, nn.Parameter)):
        return False
    if up.ndim != 3 or down.ndim != 3 or not hasattr(module, "act_fn"):
        return False
    # Transposed layouts (gpt-oss) fail this; so do interleaved ones with biases.
    fits = up.shape[1] == 2 * down.shape[2] and up.shape[2] == down.shape[1]
    return bool(fits) and not hasattr(module, "gate_up_proj_bias")


def expert_inputs(
    module: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield (expert, input of gate and up, input of down) of every expert in use.

    Args:
        module: the experts; their weights are loaded.
        hidden: ``[T, H]``.
        chosen: ``[T, k]``, the experts of each token.
    """
    experts: Any = module
    hidden = hidden.flatten(0, -2)
    chosen = chosen.reshape(hidden.shape[0], -1)
    for expert in range(experts.gate_up_proj.shape[0]):
        tokens = (chosen == expert).any(-1).nonzero().flatten()
        if not len(tokens):
            continue
        inputs = hidden[tokens]
        product = nn.functional.linear(inputs, experts.gate_up_proj[expert])
        gate, up = product.chunk(2, dim=-1)
        yield expert, inputs, experts.act_fn(gate) * up
