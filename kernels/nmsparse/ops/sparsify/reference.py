"""Pure-torch reference of ``sparsify`` and ``compact``: the truth for every backend."""

from __future__ import annotations

import torch

from nmsparse.keep import select_keep
from nmsparse.ops.sparsify.compacted import CompactActivation
from nmsparse.ops.sparsify.correction import NONE, Correction
from nmsparse.pattern import Pattern


def sparsify_reference(
    x: torch.Tensor,
    pattern: Pattern,
    criterion: str,
    correction: Correction = NONE,
) -> torch.Tensor:
    """Return ``x`` (``[..., K]``) with the dropped channels set to zero."""
    correction = correction.with_factor_of(criterion, x)
    if correction.token_shift is not None and x.dim() != 2:
        flat = x.reshape(-1, x.shape[-1])
        return sparsify_reference(flat, pattern, criterion, correction).view(x.shape)
    source, keep = select(x, pattern, correction)
    # where, not a product: 0 * inf and 0 * NaN would not be zero.
    return torch.where(keep, source, 0).to(x.dtype)


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
    correction = correction.with_factor_of(criterion, x)
    source, keep = select(x, pattern, correction)
    # nonzero walks row by row in ascending order, and every row keeps equally many.
    indices = keep.nonzero()[:, 1].view(tokens, per_token)
    scale = variance_scale(source, keep) if correction.variance else None
    values = source.gather(1, indices).to(x.dtype)
    return CompactActivation(values, indices.int(), in_features, scale)


def select(
    x: torch.Tensor, pattern: Pattern, correction: Correction
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shifted activation and what is kept of it.

    Args:
        x: ``[..., K]``; ``[T, K]`` with a token shift.
        pattern: which elements stay.
        correction: shifts and factor.

    Returns:
        ``x - shift`` in float32, or ``x`` itself without shifts; and bool, True where
        the element stays.
    """
    shifted = correction.shifted(x)
    source = x if shifted is None else shifted
    scores = source.abs()
    if correction.factor is not None:
        # Infinity times zero is a NaN, which may carry a sign.
        scores = (scores.float() * correction.factor.float()).abs()
    return source, select_keep(scores, pattern, signed=False)


def variance_scale(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Return ``[T]`` float32 ``sqrt(var(x) / var(kept))``; 1 if either is zero."""
    wide = x.double()
    if not wide.numel():
        return wide.new_ones(x.shape[0]).float()
    var_all = wide.var(dim=1, correction=0)
    var_kept = torch.where(keep, wide, 0).var(dim=1, correction=0)
    usable = (var_all > 0) & (var_kept > 0)
    ratio = torch.where(usable, var_all, 1) / torch.where(usable, var_kept, 1)
    return ratio.sqrt().float()
