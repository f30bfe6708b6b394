"""``sparsify`` and ``compact`` on a GPU: one launch for all tokens."""

from __future__ import annotations

import torch

from nmsparse.ops.sparsify.compacted import CompactActivation
from nmsparse.ops.sparsify.correction import NONE, Correction
from nmsparse.ops.sparsify.lists_triton import list_tokens, mask_tokens
from nmsparse.pattern import Pattern


def sparsify_triton(
    x: torch.Tensor,
    pattern: Pattern,
    criterion: str,
    *,
    correction: Correction = NONE,
) -> torch.Tensor:
    """Return ``x`` (``[..., K]``) with the dropped channels set to zero."""
    kept, group = pattern.group(x.shape[-1])
    if not x.numel():
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    correction = correction.with_factor_of(criterion, x)
    found = mask_tokens(
        x.reshape(-1, x.shape[-1]),
        kept=kept,
        group=group,
        factor=correction.factor,
        channel_shift=correction.channel_shift,
        token_shift=correction.token_shift,
    )
    return found.values.view(x.shape)


def compact_triton(
    x: torch.Tensor,
    pattern: Pattern,
    criterion: str,
    correction: Correction = NONE,
) -> CompactActivation:
    """Return the kept channels of ``x`` (``[T, K]``), ascending."""
    kept, group = pattern.group(x.shape[1])
    correction = correction.with_factor_of(criterion, x)
    found = list_tokens(
        x,
        kept=kept,
        group=group,
        factor=correction.factor,
        channel_shift=correction.channel_shift,
        token_shift=correction.token_shift,
        variance=correction.variance,
        index_dtype=torch.int32,
    )
    return CompactActivation(
        found.values, found.indices, found.in_features, found.scale
    )
