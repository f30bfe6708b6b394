"""From measures to shares: the steps that several papers have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Measures whose range is below this part of their size differ by rounding alone.
_NOISE = 1e-9


def complete(measures: Sequence[float], *, blocks: int) -> list[float]:
    """Replace measures that are not finite by the mean of the others.

    Such a block then gets a neutral share. If none is finite, all are 0.

    Raises:
        ValueError: if there is not one measure for each block.
    """
    if len(measures) != blocks:
        raise ValueError(
            f"Allocation: {len(measures)} measures for {blocks} blocks. Expected one "
            "measure for each block, in their order."
        )
    known = [value for value in measures if math.isfinite(value)]
    neutral = math.fsum(known) / len(known) if known else 0.0
    return [value if math.isfinite(value) else neutral for value in measures]


def unit_range(values: Sequence[float]) -> list[float] | None:
    """Map values linearly onto [0, 1]; None if they are all equal.

    The papers divide by zero there. Equal measures are no reason to treat blocks
    differently, so the caller makes them uniform.
    """
    low, high = min(values), max(values)
    if high - low <= _NOISE * max(abs(low), abs(high)):
        return None
    return [(value - low) / (high - low) for value in values]


def around(
    importance: Sequence[float], amplitude: float, *, sparsity: float
) -> list[float]:
    """Spread shares over ``2 * amplitude``, the more important the less removed.

    OWL's map, also DLP's: ``k = 2 amplitude * minmax(importance)``,
    ``kept = k - mean(k) + 1 - sparsity``. The papers' mean is not weighted by size.

    Args:
        importance: of each block.
        amplitude: half of the distance between the largest and the smallest share.
        sparsity: mean of the shares.

    Returns:
        Share of removed weights of each block.
    """
    position = unit_range(importance)
    if position is None:
        return [sparsity] * len(importance)
    mean = math.fsum(position) / len(position)
    return [sparsity - 2.0 * amplitude * (z - mean) for z in position]
