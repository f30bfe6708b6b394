"""One sparse layer that a gradient passes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.nn.functional import linear

from nmsparse.ops.online import Constants, Online, sparsify_online
from nmsparse.parameters import Parameters
from offline_prune.online.emulated_layer import RowChoice
from offline_prune.online.fused import FusedLinear, bias_of


def differentiable_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    online: Online,
    *,
    row_sum: torch.Tensor | None,
) -> torch.Tensor:
    """Return ``[T, O]`` in the dtype of ``x``: the algebra of ``nmsparse.ops.online``.

    The choice is a constant of the backward pass: the gradient flows through kept
    entries (and through dropped ones only by way of the low rank, means and
    variances). There is no straight-through estimate.

    Args:
        x: ``[T, K]``, all rows sparsified.
        weight: ``[O, K]``.
        bias: ``[O]`` or None.
        online: how; its learned tensors may require a gradient.
        row_sum: ``W 1``, float32 ``[O]``; needed with a token shift.
    """
    given = online.parameters
    fixed = Parameters(**{name: value.detach() for name, value in given.items()})
    chosen = sparsify_online(x.detach(), replace(online, parameters=fixed))
    # A kept zero passes for a dropped one, which is the same in every term.
    keep = chosen.values != 0
    u = x.float()
    e: torch.Tensor | None = None
    if online.statistic is not None:
        mean = online.statistic == "mean"
        e = u.mean(dim=1) if mean else u.median(dim=1).values
        u = u - e[:, None]
    if given.channel_shift is not None:
        u = u - given.channel_shift
    v = torch.where(keep, u, 0)
    y = linear(v.to(x.dtype), weight).float()
    if online.variance:
        y = y * _scale(u, v)[:, None]
    if given.output_scale is not None:
        y = y * (1 + given.output_scale)
    if e is not None and row_sum is not None:
        y = y + e[:, None] * row_sum
    if given.channel_shift is not None:
        y = y + weight.float() @ given.channel_shift
    if given.output_shift is not None:
        y = y + given.output_shift
    if given.low_rank_in is not None and given.low_rank_out is not None:
        dropped = torch.where(keep, 0, u).to(given.low_rank_in.dtype)
        y = y + linear(linear(dropped, given.low_rank_in), given.low_rank_out).float()
    return (y if bias is None else y + bias.float()).to(x.dtype)


def _scale(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return VAR's factor, ``[T]``; 1 without a gradient if a variance is 0."""
    of_all, of_kept = u.var(dim=1, correction=0), v.var(dim=1, correction=0)
    usable = (of_all > 0) & (of_kept > 0)
    ratio = torch.where(usable, of_all, 1) / torch.where(usable, of_kept, 1)
    return ratio.sqrt()


class DifferentiableLayer:
    """Replace the forward of a layer's parts until :meth:`restore`.

    Args:
        layer: the parts.
        online: returns how, at every call.
        rows: says which rows are sparsified.

    Attributes:
        input_size: root mean square of a token's input at the last call, median.
        output_size: the same of the output.
    """

    def __init__(
        self, layer: FusedLinear, online: Callable[[], Online], rows: RowChoice
    ) -> None:
        self.input_size = self.output_size = 1.0
        self._name, self._sizes = layer.name, layer.out_features
        self._online, self._rows = online, rows
        self._weight = layer.weight()
        biases = [bias_of(module) for module in layer.parts.values()]
        known = [bias for bias in biases if bias is not None]
        self._bias = torch.cat(known).detach() if len(known) == len(biases) else None
        assert self._bias is not None or not known
        self._row_sum = Constants.of(self._weight, online()).row_sum
        self._input: torch.Tensor | None = None
        self._outputs: dict[int, torch.Tensor] = {}
        self._before: list[tuple[nn.Module, object]] = []
        for number, module in enumerate(layer.parts.values()):
            self._before.append((module, module.__dict__.get("forward")))
            module.forward = self._part(number)

    def restore(self) -> None:
        """Give every part the forward it had."""
        for module, before in self._before:
            if before is None:
                del module.forward
            else:
                module.forward = before  # type: ignore[assignment]
        self._before.clear()

    def _part(self, number: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            if self._input is not x or number not in self._outputs:
                self._input, self._outputs = x, self._all(x)
            out = self._outputs.pop(number)
            if not self._outputs:
                self._input = None
            return out

        return forward

    def _all(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return the outputs of all parts, by number."""
        flat = x.reshape(-1, x.shape[-1])
        chosen = self._rows(self._name, len(flat))
        rows = flat if chosen is None else flat[chosen]
        out = differentiable_linear(
            rows, self._weight, self._bias, self._online(), row_sum=self._row_sum
        )
        if chosen is not None:
            dense = linear(flat[~chosen], self._weight, self._bias)
            whole = flat.new_empty(len(flat), len(self._weight))
            out = whole.index_put((chosen,), out).index_put((~chosen,), dense)
        self.input_size, self.output_size = _size(flat), _size(out)
        parts = out.reshape(*x.shape[:-1], -1).split(self._sizes, dim=-1)
        return dict(enumerate(parts))


def _size(x: torch.Tensor) -> float:
    """Return the median over tokens of the root mean square of ``x``, ``[T, C]``."""
    if not len(x):
        return 1.0
    return float(x.detach().float().square().mean(dim=1).sqrt().median())
