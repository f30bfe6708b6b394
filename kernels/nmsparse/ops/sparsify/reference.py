"""Pure-torch reference of ``sparsify`` and ``compact``: the truth for every backend."""

from __future__ import annotations

import torch

from nmsparse.criteria import criteria
from nmsparse.keep import select_keep
from nmsparse.ops.sparsify.compacted import CompactActivation
from nmsparse.ops.sparsify.correction import NONE, Correction
from nmsparse.pattern import Pattern


def sparsify_reference(
    x: torch.Tensor, pattern: Pattern, criterion: str
) -> torch.Tensor:
    """Return ``x`` (``[..., K]``) with the dropped channels set to zero."""
    keep = select_keep(criteria.get(criterion)(x), pattern, signed=False)
    # where, not a product: 0 * inf and 0 * NaN would not be zero.
    return torch.where(keep, x, 0)


def compact_reference(
    x: torch.Tensor,
    pattern: Pattern,
    criterion: str,
    correction: Correction = NONE,
) -> CompactActivation:
    """Return the kept channels of ``x`` (``[T, K]``), ascending."""
    tokens, in_features = x.shape
    kept, group = pattern.group(in_features)
    per_token = in_features // group * kept
    shifted = _shift(x, correction)
    scores = criteria.get(criterion)(x if shifted is None else shifted)
    if correction.factor is not None:
        scores = scores.float() * correction.factor.float()
    keep = select_keep(scores, pattern, signed=False)
    # nonzero walks row by row in ascending order, and every row keeps equally many.
    indices = keep.nonzero()[:, 1].view(tokens, per_token)
    source = x if shifted is None else shifted
    scale = _variance_scale(source, keep) if correction.variance else None
    values = source.gather(1, indices).to(x.dtype)
    return CompactActivation(values, indices.int(), in_features, scale)


def _shift(x: torch.Tensor, correction: Correction) -> torch.Tensor | None:
    """Return ``x - shift`` in float32, None without shifts."""
    if correction.channel_shift is None and correction.token_shift is None:
        return None
    shifted = x.float()
    if correction.channel_shift is not None:
        shifted = shifted - correction.channel_shift.float()
    if correction.token_shift is not None:
        shifted = shifted - correction.token_shift.float()[:, None]
    return shifted


def _variance_scale(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Return ``[T]`` float32 ``sqrt(var(x) / var(kept))``; 1 if either is zero."""
    wide = x.double()
    var_all = wide.var(dim=1, correction=0)
    var_kept = torch.where(keep, wide, 0).var(dim=1, correction=0)
    usable = (var_all > 0) & (var_kept > 0)
    ratio = torch.where(usable, var_all, 1) / torch.where(usable, var_kept, 1)
    return ratio.sqrt().float()
