"""Pure-torch reference of ``packed_linear``: unpack some rows, multiply in float32."""

from __future__ import annotations

import torch

from nmsparse.packed import PackedWeight

# Elements of the dense weight that exist at once.
_BLOCK = 1 << 20


def packed_linear_reference(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``[T, O]`` for ``x`` (``[T, K]``)."""
    out_features, in_features = weight.shape
    step = max(1, _BLOCK // max(1, in_features))
    out = x.new_empty(x.shape[0], out_features, dtype=torch.float32)
    wide = x.float()
    for start in range(0, out_features, step):
        stop = min(start + step, out_features)
        rows = weight.rows(start, stop).unpack()  # [rows, K]
        out[:, start:stop] = wide @ rows.float().t()
    if bias is not None:
        out += bias.float()
    return out.to(x.dtype)
