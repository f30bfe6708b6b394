"""Shares of rows as whole numbers of weights; ``offline_prune.budget`` on tensors.

A linear has thousands of rows of one length, and OGAS splits its budget a dozen times.
"""

from __future__ import annotations

import torch

_STEPS = 100
_WHOLE = 1e-6


def split_rows(
    shares: torch.Tensor, columns: int, *, removed: int, lower: float, upper: float
) -> torch.Tensor:
    """Project shares onto the linear's budget and round by largest remainder.

    Args:
        shares: ``[O]``, proposed share of removed weights of each row.
        columns: K, weights in a row.
        removed: weights to remove from the linear.
        lower: least share of a row.
        upper: greatest share; ``lower <= removed / (O * K) <= upper``.

    Returns:
        int64 ``[O]``, summing to ``removed``. Of equal remainders the first rows
        round up.
    """
    shares = shares.double()
    target = removed / columns  # sum of the shares
    low = lower - float(shares.amax())
    high = upper - float(shares.amin())
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if float((shares + middle).clamp(lower, upper).sum()) < target:
            low = middle
        else:
            high = middle
    quotas = (shares + high).clamp(lower, upper) * columns
    counts = (quotas + _WHOLE).floor()
    missing = removed - int(counts.sum())
    remainders = ((quotas - counts) / _WHOLE).round()
    order = remainders.argsort(descending=True, stable=True)
    counts[order[:missing]] += 1
    return counts.long()
