"""``sparsify_online`` on a GPU: one launch, but for medians, norms and residuals."""

from __future__ import annotations

import torch

from nmsparse.ops.online.online import Online
from nmsparse.ops.online.terms import Sparsified
from nmsparse.ops.sparsify.correction import Correction
from nmsparse.ops.sparsify.lists_triton import mask_tokens


def sparsify_online_triton(x: torch.Tensor, online: Online) -> Sparsified:
    """Return the parts of ``x`` (``[T, K]``)."""
    kept, group = online.pattern.group(x.shape[1])
    given = online.parameters
    # The kernel finds a mean by itself. Norms of the step are those of shifted tokens.
    statistic = online.statistic == "mean" and not online.needs_batch
    if statistic:
        correction = Correction(given.factor, given.channel_shift).with_factor_of(
            online.criterion, x
        )
    else:
        correction = online.correction(x)
    found = mask_tokens(
        x,
        kept=kept,
        group=group,
        factor=correction.factor,
        channel_shift=correction.channel_shift,
        token_shift=correction.token_shift,
        statistic=statistic,
        variance=online.variance,
        channel_groups=given.channel_groups,
    )
    residual = None
    if online.residual:
        shifted = Correction(None, given.channel_shift, found.token_shift).shifted(x)
        dropped = x if shifted is None else shifted.to(x.dtype)
        # Not a difference: that of two infinities is NaN.
        residual = torch.where(found.values != 0, 0, dropped)
    return Sparsified(found.values, found.scale, found.token_shift, residual)
