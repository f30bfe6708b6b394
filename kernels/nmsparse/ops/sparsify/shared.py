"""One list of channels for all tokens of a step: the reference.

Lists of one token each name nearly all rows once a few tokens are joined. A shared list
names as many as one token's. The score of a channel is what it holds of the tokens'
energy, summed over the tokens::

    score[k] = sum over t of (u[t, k] * factor[k])^2 / sum over k of u[t, k]^2

so that a loud token has no more say than a quiet one. A token of zeros has none. One
choice for a batch is an idea of Polar Sparsity (arXiv 2505.14884); the score is ours.
Sums are in float64, scores are float32, and the N best of every M stay as everywhere.

The choice of a token then depends on the other tokens of its step. If one of them has
to stay dense, the list names all channels and the whole step is dense.
"""

from __future__ import annotations

import torch

from nmsparse.keep import select_keep
from nmsparse.mitigation.shift import token_statistic
from nmsparse.ops.sparsify.correction import Correction
from nmsparse.ops.sparsify.lists import TokenLists, index_dtype_of
from nmsparse.ops.sparsify.reference import variance_scale
from nmsparse.pattern import NMPattern


def shared_scores(
    u: torch.Tensor,
    factor: torch.Tensor | None = None,
    voters: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the score of every channel, ``[K]`` float32.

    Args:
        u: ``[T, K]``, shifted tokens.
        factor: ``[K]`` or None.
        voters: ``[T]`` bool, tokens that have a say; None for all.
    """
    wide = u.double()
    energy = wide.square().sum(dim=1, keepdim=True)
    if factor is not None:
        # As scores elsewhere, the product is one in float32.
        wide = (u.float() * factor.float()).double()
    shares = wide.square() * energy.reciprocal()
    silent = energy == 0
    if voters is not None:
        silent = silent | ~voters.bool()[:, None]
    return torch.where(silent, 0, shares).sum(dim=0).float()


def list_shared_reference(
    x: torch.Tensor,
    *,
    kept: int,
    group: int,
    factor: torch.Tensor | None = None,
    channel_shift: torch.Tensor | None = None,
    token_shift: torch.Tensor | None = None,
    statistic: bool = False,
    variance: bool = False,
    channel_groups: torch.Tensor | None = None,
    sparse: torch.Tensor | None = None,
    counters: torch.Tensor | None = None,
    counted: torch.Tensor | None = None,
) -> TokenLists:
    """Return one list for all tokens; the arguments are those of ``list_tokens``.

    A token that is flagged in ``sparse`` and not in ``counted`` is padding: it has no
    say. Padding must be flagged sparse, or it makes the step dense.
    """
    channels = x.shape[1]
    if statistic:
        token_shift = token_statistic(x, "mean")
    shifted = Correction(None, channel_shift, token_shift).shifted(x)
    u = x if shifted is None else shifted
    voters = sparse if counted is None else counted
    scores = shared_scores(u, factor, voters)
    order = torch.arange(channels, device=x.device)
    if channel_groups is not None:
        order = channel_groups
    chosen = select_keep(scores[order], NMPattern(kept, group)).nonzero()[:, 0]
    listed = order[chosen]
    dense = sparse is not None and not bool(sparse.bool().all())
    if dense:
        listed, u = torch.arange(channels, device=x.device), x
    keep = torch.zeros(channels, dtype=torch.bool, device=x.device)
    keep[listed] = True
    values = u[:, listed].to(x.dtype)
    scale = variance_scale(u, keep) if variance else None
    if dense:
        scale = None if scale is None else torch.ones_like(scale)
        token_shift = None if token_shift is None else torch.zeros_like(token_shift)
    if counters is not None:
        real = _real(sparse, counted, x)
        nonzeros = ((values != 0) & real[:, None]).sum()
        counters += torch.stack((real.sum() * channels, nonzeros))
    return TokenLists(
        values,
        listed[None].to(index_dtype_of(channels)),
        torch.full((1,), len(listed), dtype=torch.int32, device=x.device),
        channels,
        channels // group * kept,
        scale,
        token_shift,
        None if sparse is None else torch.full_like(sparse.bool(), not dense),
    )


def _real(
    sparse: torch.Tensor | None, counted: torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor:
    """Return ``[T]`` bool: the tokens that count."""
    flags = sparse if counted is None else counted
    return x.new_ones(x.shape[0], dtype=torch.bool) if flags is None else flags.bool()
