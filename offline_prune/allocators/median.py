"""Exact median of numbers that come in parts, without keeping them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

# Bits of a float32 that one pass decides; two passes decide all.
_BITS = 16
_BINS = 1 << _BITS


def lower_median(parts: Callable[[], Iterable[torch.Tensor]]) -> float:
    """Return the lower median, as ``torch.median`` of all parts together would.

    The bit patterns of floats that are not negative have the order of the floats: a
    histogram of the upper half of the bits finds the bin, one of the lower half the
    number. A block of 200 million scores needs no sort and no copy.

    Args:
        parts: called twice; gives the same float32 tensors each time, values >= 0.

    Returns:
        The element of rank ``(n - 1) // 2``; NaN if there is none.
    """
    upper = torch.zeros(_BINS, dtype=torch.int64)
    for part in parts():
        upper += _histogram(_bits(part) >> _BITS)
    count = int(upper.sum())
    if count == 0:
        return math.nan
    rank = (count - 1) // 2
    bin_, rank = _locate(upper, rank)
    lower = torch.zeros(_BINS, dtype=torch.int64)
    for part in parts():
        bits = _bits(part)
        lower += _histogram(bits[bits >> _BITS == bin_] & (_BINS - 1))
    pattern = bin_ << _BITS | _locate(lower, rank)[0]
    return float(torch.tensor(pattern, dtype=torch.int32).view(torch.float32))


def _bits(part: torch.Tensor) -> torch.Tensor:
    # Adding zero turns -0.0, whose bits are negative, into 0.0.
    return (part.float() + 0.0).flatten().view(torch.int32)


def _histogram(values: torch.Tensor) -> torch.Tensor:
    return torch.bincount(values, minlength=_BINS).cpu()


def _locate(counts: torch.Tensor, rank: int) -> tuple[int, int]:
    """Return the bin that holds the element of ``rank``, and its rank there."""
    ends = counts.cumsum(0)
    found = int(torch.searchsorted(ends, rank, right=True))
    return found, rank - (int(ends[found - 1]) if found else 0)
