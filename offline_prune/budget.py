"""The budget: shares that average to the target, and whole numbers of weights.

An allocator proposes a share of weights to remove for every block. :func:`project`
restores the target exactly, :func:`apportion` turns shares into numbers of weights with
an exact total, and :func:`apportion_nm` into the N of N:M patterns. Projection onto the
budget is our formulation; the papers rescale, or clip and let the mean drift. Plain
Python and correctly rounded sums: the same numbers on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from offline_prune.errors import InputError
from offline_prune.rounding import UNIT, round_up

# No block loses more than this unless the user asks for it.
UPPER = 0.95
# A mean this near the target is the target: a projection projected again stays itself.
_EXACT = 1e-12
# Quotas this near a whole number are whole: they come from float64 products.
_WHOLE = 1e-6
# Steps of bisection; float64 brackets shrink to neighbours in fewer.
_STEPS = 200


def project(
    raw: Sequence[float],
    sizes: Sequence[int],
    *,
    sparsity: float,
    lower: float = 0.0,
    upper: float = UPPER,
) -> list[float]:
    """Shift all shares by one constant and clip them, so that the budget is met.

    Finds ``t`` with ``sum_l p_l clip(s_l + t, lower, upper) = sparsity * sum_l p_l``
    by bisection. Keeps the order of the shares; projecting twice changes nothing.

    Args:
        raw: proposed share of removed weights of each unit, any finite numbers.
        sizes: number of weights of each unit, ``p``.
        sparsity: share of all weights to remove.
        lower: least share of a unit.
        upper: greatest share of a unit.

    Returns:
        A share for each unit, within the bounds.

    Raises:
        InputError: if no shares within the bounds meet the budget.
        ValueError: if lengths differ, a share is not finite or there are no weights.
    """
    _check(raw, sizes)
    if not 0.0 <= lower <= sparsity <= upper <= 1.0:
        raise InputError(
            f"Sparsity {sparsity} cannot be spread with at least {lower} and at most "
            f"{upper} removed from every block. Expected 0 <= {lower} <= sparsity <= "
            f"{upper} <= 1: choose another sparsity, or wider bounds."
        )
    total = sum(sizes)
    target = sparsity * total

    def shifted(shift: float) -> list[float]:
        return [min(upper, max(lower, share + shift)) for share in raw]

    def excess(shares: Sequence[float]) -> float:
        return math.fsum(p * s for p, s in zip(sizes, shares, strict=True)) - target

    shares = shifted(0.0)
    if abs(excess(shares)) <= _EXACT * total:
        return shares
    low, high = lower - max(raw), upper - min(raw)
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if excess(shifted(middle)) < 0:
            low = middle
        else:
            high = middle
    shares = shifted(high)
    # What the float64 grid of the shift left over goes to the units between the bounds.
    free = sum(p for p, s in zip(sizes, shares, strict=True) if lower < s < upper)
    if free:
        step = -excess(shares) / free
        shares = [
            min(upper, max(lower, s + step)) if lower < s < upper else s for s in shares
        ]
    return shares


def apportion(
    shares: Sequence[float], sizes: Sequence[int], *, total: int
) -> list[int]:
    """Turn shares into whole numbers with an exact total: largest remainder.

    Args:
        shares: share of each unit; shifted by one constant first (as :func:`project`
            does) if together they are not ``total``.
        sizes: number of weights of each unit.
        total: sum of the result.

    Returns:
        Weights to remove from each unit: its quota ``share * size`` rounded down or
        up. The largest remainders round up; of equal ones the first.

    Raises:
        InputError: if ``total`` is negative or above the sum of the sizes.
        ValueError: as :func:`project`.
    """
    _check(shares, sizes)
    if not 0 <= total <= sum(sizes):
        raise InputError(
            f"{total} weights cannot be removed from {sum(sizes)}. Expected 0 to "
            f"{sum(sizes)}: choose a sparsity from 0 to 1."
        )
    shares = project(shares, sizes, sparsity=total / sum(sizes), upper=1.0)
    quotas = [share * size for share, size in zip(shares, sizes, strict=True)]
    counts = [math.floor(quota + _WHOLE) for quota in quotas]
    remainders = [quota - count for quota, count in zip(quotas, counts, strict=True)]
    # Sorting is stable: of equal remainders, quantised against noise, the first wins.
    order = sorted(range(len(sizes)), key=lambda unit: -round(remainders[unit], 6))
    missing = total - sum(counts)
    for unit in order[:missing]:
        counts[unit] += 1
    return counts


def apportion_nm(
    shares: Sequence[float], sizes: Sequence[int], *, m: int, sparsity: float
) -> list[int]:
    """Choose N of N:M (kept of every M) for each unit.

    A unit's wish ``m * (1 - share)`` is rounded down or up. Of all such roundings the
    one is taken whose mean over the weights is nearest the target; among those the one
    with the least ``sum_l size_l * |N_l - wish_l|``, then the one that rounds the
    first units up. OWL (arXiv 2310.05175) rounds every block by itself instead, which
    misses the target. Our formulation.

    Args:
        shares: share of removed weights of each unit; projected onto the budget first.
        sizes: number of weights of each unit.
        m: group size.
        sparsity: share of all weights to remove.

    Returns:
        N for each unit, from 1 to ``m``.

    Raises:
        InputError: if ``sparsity`` is above ``1 - 1/m``: N is at least 1.
        ValueError: as :func:`project`.
    """
    most = 1.0 - 1.0 / m
    if not 0.0 <= sparsity <= most:
        raise InputError(
            f"Sparsity {sparsity} is out of reach of N:{m} patterns. Expected 0 to "
            f"{most:g}, where 1 of {m} is kept: choose a larger M, or a lower sparsity."
        )
    shares = project(shares, sizes, sparsity=sparsity, upper=most)
    kept, fractions = [], []
    for share in shares:
        wish = round(m * (1.0 - share) * UNIT)
        kept.append(wish // UNIT)
        fractions.append(wish % UNIT)
    floor = sum(n * size for n, size in zip(kept, sizes, strict=True))
    missing = m * (1.0 - sparsity) * sum(sizes) - floor
    ups = round_up(fractions, sizes, missing=missing)
    return [n + up for n, up in zip(kept, ups, strict=True)]


def _check(shares: Sequence[float], sizes: Sequence[int]) -> None:
    if len(shares) != len(sizes):
        raise ValueError(
            f"Budget: {len(shares)} shares for {len(sizes)} sizes. Expected one share "
            "and one size for every unit."
        )
    if not all(math.isfinite(share) for share in shares):
        raise ValueError(
            f"Budget: shares {list(shares)} are not all finite. Expected numbers: "
            "replace what could not be measured first."
        )
    if any(size < 0 for size in sizes) or sum(sizes) == 0:
        raise ValueError(
            f"Budget: sizes {list(sizes)}. Expected numbers of weights, at least one "
            "above 0."
        )
