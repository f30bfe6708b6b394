"""Pure-torch reference of ``sparsify`` and ``compact``: the truth for every backend."""

from __future__ import annotations

import torch

from nmsparse.criteria import criteria
from nmsparse.keep import select_keep
from nmsparse.ops.sparsify.compacted import CompactActivation
from nmsparse.pattern import Pattern


def sparsify_reference(
    x: torch.Tensor, pattern: Pattern, criterion: str
) -> torch.Tensor:
    """Return ``x`` (``[..., K]``) with the dropped channels set to zero."""
    keep = select_keep(criteria.get(criterion)(x), pattern, signed=False)
    # where, not a product: 0 * inf and 0 * NaN would not be zero.
    return torch.where(keep, x, 0)


def compact_reference(
    x: torch.Tensor, pattern: Pattern, criterion: str
) -> CompactActivation:
    """Return the kept channels of ``x`` (``[T, K]``), ascending."""
    tokens, in_features = x.shape
    kept, group = pattern.group(in_features)
    per_token = in_features // group * kept
    keep = select_keep(criteria.get(criterion)(x), pattern, signed=False)
    # nonzero walks row by row in ascending order, and every row keeps equally many.
    indices = keep.nonzero()[:, 1].view(tokens, per_token)
    return CompactActivation(x.gather(1, indices), indices.int(), in_features)
