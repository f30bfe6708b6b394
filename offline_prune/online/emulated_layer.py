"""One fused layer of a transformers model with a sparse input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.functional import linear

from nmsparse.ops.online import (
    Constants,
    Online,
    Sparsified,
    finish_online,
    sparsify_online,
)
from nmsparse.parameters import Parameters
from offline_prune.online.fused import FusedLinear, bias_of, weight_of

# Rows of a layer's input that are sparsified, bool [rows]; None for all of them.
RowChoice = Callable[[str, int], torch.Tensor | None]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One of the linears that make a fused layer.

    Attributes:
        module: the linear.
        forward: its own forward.
        online: with the output side of this part alone.
        constants: what the shifts are times the weight.
    """

    module: nn.Module
    forward: Callable[[torch.Tensor], torch.Tensor]
    online: Online
    constants: Constants


class EmulatedLayer:
    """Replace the forward of a layer's parts until :meth:`restore`.

    The input is sparsified once for all parts that are called with the same tensor.
    Weights are read at every call; the factor and the constants are those of the
    weights at the time of construction.

    Args:
        layer: the parts.
        online: what to do, for the fused weight.
        rows: says which rows are sparsified.
    """

    def __init__(self, layer: FusedLinear, online: Online, rows: RowChoice) -> None:
        self._name = layer.name
        self._online = online
        self._rows = rows
        self._input: torch.Tensor | None = None
        self._found: tuple[torch.Tensor | None, Sparsified] | None = None
        self._left = 0
        self._before: list[tuple[nn.Module, object]] = []
        self._parts: list[_Part] = []
        start = 0
        for module, size in zip(layer.parts.values(), layer.out_features, strict=True):
            outputs = slice(start, start + size)
            mine = replace(online, parameters=_outputs(online.parameters, outputs))
            made = Constants.of(weight_of(module).detach(), mine)
            self._parts.append(_Part(module, module.forward, mine, made))
            start += size
        for part in self._parts:
            self._replace(part)

    def restore(self) -> None:
        """Give every part the forward it had."""
        for module, before in self._before:
            if before is None:
                del module.forward
            else:
                module.forward = before  # type: ignore[assignment]
        self._before.clear()

    def _replace(self, part: _Part) -> None:
        def forward(x: torch.Tensor) -> torch.Tensor:
            return self._forward(part, x)

        self._before.append((part.module, part.module.__dict__.get("forward")))
        part.module.forward = forward

    def _forward(self, part: _Part, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        chosen = self._rows(self._name, len(flat))
        if chosen is not None and not chosen.any():
            return part.forward(x)
        chosen, sparse = self._sparsified(x, chosen)
        bias = bias_of(part.module)
        weight = weight_of(part.module)
        if chosen is None:
            out = _product(sparse, weight, bias, part)
        else:
            out = flat.new_empty(len(flat), len(weight))
            out[chosen] = _product(sparse, weight, bias, part)
            # Not one product with the rows above: the dense layer's own forward.
            out[~chosen] = part.forward(flat[~chosen])
        return out.reshape(*x.shape[:-1], len(weight))

    def _sparsified(
        self, x: torch.Tensor, chosen: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, Sparsified]:
        """Return the sparse rows of ``x``, and which they are."""
        if self._input is not x or self._found is None:
            flat = x.reshape(-1, x.shape[-1])
            rows = flat if chosen is None else flat[chosen]
            self._found = chosen, sparsify_online(rows, self._online)
            self._input, self._left = x, len(self._parts)
        found = self._found
        self._left -= 1
        if not self._left:
            self._input, self._found = None, None
        return found


def _product(
    sparse: Sparsified, weight: torch.Tensor, bias: torch.Tensor | None, part: _Part
) -> torch.Tensor:
    """Return ``[rows, O]`` of one part."""
    if not part.online.mitigation:
        return linear(sparse.values, weight, bias)
    product = linear(sparse.values, weight)
    out = finish_online(product, sparse, part.online, part.constants)
    return (out if bias is None else out + bias).to(product.dtype)


def _outputs(parameters: Parameters, outputs: slice) -> Parameters:
    """Return parameters with the output side of one part."""

    def cut(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[outputs]

    return replace(
        parameters,
        output_scale=cut(parameters.output_scale),
        output_shift=cut(parameters.output_shift),
        low_rank_out=cut(parameters.low_rank_out),
    )
