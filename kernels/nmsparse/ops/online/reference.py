"""Pure-torch reference of online sparsity: the truth for every backend."""

from __future__ import annotations

from dataclasses import replace

import torch

from nmsparse.ops.online.online import Online
from nmsparse.ops.online.terms import Sparsified
from nmsparse.ops.sparsify.correction import Correction
from nmsparse.ops.sparsify.reference import select, variance_scale


def sparsify_online_reference(x: torch.Tensor, online: Online) -> Sparsified:
    """Return the parts of ``x`` (``[T, K]``)."""
    correction = online.correction(x)
    groups = online.parameters.channel_groups
    if groups is not None:
        correction, x = regroup(correction, groups), x[:, groups]
    shifted, keep = select(x, online.pattern, correction)
    # where, not a product: 0 * inf and 0 * NaN would not be zero.
    values = torch.where(keep, shifted, 0).to(x.dtype)
    scale = variance_scale(shifted, keep) if correction.variance else None
    residual = torch.where(keep, 0, shifted).to(x.dtype) if online.residual else None
    if groups is not None:
        values = in_order(values, groups)
        residual = None if residual is None else in_order(residual, groups)
    return Sparsified(values, scale, correction.token_shift, residual)


def regroup(correction: Correction, groups: torch.Tensor) -> Correction:
    """Return the correction of ``x[:, groups]``."""
    factor, shift = correction.factor, correction.channel_shift
    return replace(
        correction,
        factor=None if factor is None else factor[groups],
        channel_shift=None if shift is None else shift[groups],
    )


def in_order(x: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return ``y`` with ``y[:, groups] == x`` (``[T, K]``)."""
    return torch.empty_like(x).index_copy_(1, groups, x)
