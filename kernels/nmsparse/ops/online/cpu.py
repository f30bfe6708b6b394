"""C++ ``sparsify_online``: one pass of ``csrc/sparsify.h`` over each token."""

from __future__ import annotations

import torch

from nmsparse.ops.online.online import Online
from nmsparse.ops.online.reference import in_order, regroup
from nmsparse.ops.online.terms import Sparsified
from nmsparse.ops.sparsify.cpu import new_scale, run_sparsify


def sparsify_online_cpu(x: torch.Tensor, online: Online) -> Sparsified:
    """Return the parts of ``x`` (``[T, K]``)."""
    correction = online.correction(x)
    groups = online.parameters.channel_groups
    if groups is not None:
        correction, x = regroup(correction, groups), x.index_select(1, groups)
    online.pattern.group(x.shape[1])
    values = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    scale = new_scale(x) if correction.variance else None
    if values.numel():
        run_sparsify(x, online.pattern, correction, dense=values, scale=scale)
    residual = None
    if online.residual:
        shifted = correction.shifted(x)
        dropped = x if shifted is None else shifted.to(x.dtype)
        # Not a difference: that of two infinities is NaN.
        residual = torch.where(values != 0, 0, dropped)
    if groups is not None:
        values = in_order(values, groups)
        residual = None if residual is None else in_order(residual, groups)
    return Sparsified(values, scale, correction.token_shift, residual)
