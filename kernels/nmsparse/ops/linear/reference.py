"""Pure-torch reference of ``linear``: gather the kept rows, accumulate in float32.

``y[t, o] = bias[o] + sum_i values[t, i] * weight[indices[t, i], o]``, and the other
terms of :func:`nmsparse.linear`.
"""

from __future__ import annotations

import torch

from nmsparse.ops.sparsify.compacted import CompactActivation


def linear_reference(
    x: CompactActivation,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_shift: torch.Tensor | None = None,
    row_sum: torch.Tensor | None = None,
    addend: torch.Tensor | None = None,
    output_scale: torch.Tensor | None = None,
    constant: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``[T, O]``. One token at a time: the gathered rows are ``[kept, O]``."""
    out = weight.new_empty(x.values.shape[0], weight.shape[1], dtype=torch.float32)
    for t in range(out.shape[0]):
        rows = weight[x.indices[t].long()].float()  # [kept, O]
        out[t] = x.values[t].float() @ rows
    if x.scale is not None:
        out *= x.scale[:, None]
    if output_scale is not None:
        out *= 1 + output_scale.float()
    if token_shift is not None and row_sum is not None:
        out += token_shift.float()[:, None] * row_sum.float()
    if constant is not None:
        out += constant.float()
    if bias is not None:
        out += bias.float()
    if addend is not None:
        out += addend.float()
    return out.to(x.values.dtype)
