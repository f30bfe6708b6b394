"""AlphaPruning: blocks whose spectra have lighter tails lose more. Needs no data.

Lu et al. 2024, arXiv 2410.10912. The measure is the mean power-law exponent ``alpha``
of the block's linears (``heavy_tail.py``); a heavy tail, a small alpha, is read as well
trained.
With ``r_l = (1 - eps) + 2 eps * minmax(alpha)_l`` the share is
``s_l = r_l * S * sum(p) / sum(p r)``: the mean weighted by size is exactly S, and the
ratio of the largest to the smallest share is ``(1 + eps) / (1 - eps)``. Shares above 1
can result, which the projection onto the budget mends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from offline_prune.allocators import heavy_tail
from offline_prune.allocators.base import Allocator, BlockView
from offline_prune.allocators.importance import check_finite
from offline_prune.allocators.spread import complete, unit_range

_FITS = {
    "alpha_peak": heavy_tail.alpha_peak,
    "alpha_mid": heavy_tail.alpha_mid,
    "alpha_full": heavy_tail.alpha_full,
}


def alpha_ratios(
    alphas: Sequence[float], eps: float, *, sizes: Sequence[int], sparsity: float
) -> list[float]:
    """Map exponents to shares.

    Args:
        alphas: of each block.
        eps: spread of the factors around 1.
        sizes: number of weights of each block.
        sparsity: mean of the shares, weighted by size.

    Returns:
        Share of removed weights of each block, before projection.
    """
    position = unit_range(alphas)
    if position is None:
        return [sparsity] * len(alphas)
    factors = [1.0 - eps + 2.0 * eps * z for z in position]
    weighted = math.fsum(p * r for p, r in zip(sizes, factors, strict=True))
    if weighted == 0.0:
        return [sparsity] * len(alphas)
    scale = sparsity * sum(sizes) / weighted
    return [scale * factor for factor in factors]


class AlphaPruning(Allocator):
    """Remove more from blocks whose weights have lighter spectral tails."""

    name: ClassVar[str] = "alpha_pruning"
    title: ClassVar[str] = "AlphaPruning"
    paper: ClassVar[str] = "Lu et al. 2024, arXiv 2410.10912"

    eps: float = Field(
        default=0.3,
        ge=0.0,
        le=1.0,
        description="factors of the shares range from 1 - eps to 1 + eps",
    )
    metric: Literal["alpha_peak", "alpha_mid", "alpha_full"] = Field(
        default="alpha_peak",
        description="where the fitted tail begins: near the spectrum's peak, at its "
        "middle, or wherever it fits best",
    )

    def measure(self, block: BlockView) -> float:
        """Return the mean exponent of the block's linears."""
        alphas = []
        for name, weight in block.weights.items():
            check_finite(name, weight, what="weight")
            alphas.append(_FITS[self.metric](heavy_tail.spectrum(weight)))
        # A weight of zeros, or with one singular value, has no exponent.
        known = [alpha for alpha in alphas if math.isfinite(alpha)]
        return math.fsum(known) / len(known) if known else math.nan

    def ratios(
        self, measures: Sequence[float], *, sizes: Sequence[int], sparsity: float
    ) -> list[float]:
        """Propose shares by :func:`alpha_ratios`."""
        known = complete(measures, blocks=len(sizes))
        return alpha_ratios(known, self.eps, sizes=sizes, sparsity=sparsity)
