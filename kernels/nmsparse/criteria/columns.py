"""Sums over the rows of a weight, for factors per channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_ROWS = 1024


def column_squares(
    weight: torch.Tensor,
    *,
    center: float = 0.0,
    row_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``sum_o row_weight[o] * (weight[o, k] - center)^2``.

    Args:
        weight: ``[O, K]`` float.
        center: subtracted from every weight.
        row_weight: ``[O]``; ones if None.

    Returns:
        ``[K]`` float64. Shards of the rows add up.
    """
    total = weight.new_zeros(weight.shape[1]).double()
    # In pieces: a float64 copy of a whole weight would be four times its size.
    for start in range(0, weight.shape[0], _ROWS):
        squares = (weight[start : start + _ROWS].double() - center).square_()
        if row_weight is not None:
            squares *= row_weight[start : start + _ROWS, None].double()
        total += squares.sum(dim=0)
    return total
