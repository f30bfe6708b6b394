"""Amber Pruner: magnitude times the norm of robustly standardised weights.

arXiv 2508.02128, as the code of arXiv 2509.22166 has it: ``|x_k| * f_k`` with
``f_k = ||Wn_:k|| / max(min_j ||Wn_:j||, 1e-8)`` and ``Wn = (W - mean) / std``. Mean and
std (floor 1e-8) are those of the weights between the 0.5 % and 99.5 % quantiles, the
norms are over all weights. That code estimates the quantiles from a random sample at
every call; here they are exact and computed once, over all rows of a fused weight.
The factor does not change when the weight is scaled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nmsparse.criteria.base import Criterion
from nmsparse.criteria.columns import column_squares

if TYPE_CHECKING:
    import torch

_TAIL = 0.005
_FLOOR = 1e-8


class AmberPruner(Criterion):
    """``|u_k| * f_k``, see the module."""

    name = "amber_pruner"
    title = "Amber Pruner"
    paper = "2508.02128"
    needs = "weight"

    def factor(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``f_k``: at least 1, and 1 for the lightest channel."""
        flat = weight.float().flatten()
        low, high = quantile(flat, _TAIL), quantile(flat, 1 - _TAIL)
        inside = flat[(flat >= low) & (flat <= high)].double()
        mean = float(inside.mean())
        std = max(float(inside.std(correction=0)), _FLOOR)
        norms = column_squares(weight, center=mean).sqrt() / std
        return (norms / norms.min().clamp_min(_FLOOR)).float()


def quantile(flat: torch.Tensor, share: float) -> float:
    """Return a quantile with linear interpolation, of any number of elements.

    Args:
        flat: ``[n]`` float32, not empty (``torch.quantile`` takes 16 million at most).
        share: between 0 and 1.
    """
    place = share * (flat.numel() - 1)
    below = math.floor(place)
    first = float(flat.kthvalue(below + 1).values)
    second = float(flat.kthvalue(min(below + 2, flat.numel())).values)
    return first + (second - first) * (place - below)


amber_pruner = AmberPruner()
