"""OWL: blocks with more outliers keep more.

Yin et al. 2023, "Outlier Weighed Layerwise Sparsity (OWL)", arXiv 2310.05175. A block's
measure is the percentage of Wanda scores above ``m`` times their mean, one mean over
all linears of the block: ``D = 100 * mean(A > m * mean(A))``. Then
``kept_l = k_l - mean(k) + 1 - S`` with ``k_l = 2 lam * minmax(D)_l``. Needs the second
moments of the inputs. Where the released code only guards ``s <= 0``, the projection
onto the budget bounds both ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from offline_prune.allocators.base import Allocator, BlockView
from offline_prune.allocators.importance import block_scores
from offline_prune.allocators.spread import around, complete
from offline_prune.statistics.needs import Need


def owl_ratios(
    outliers: Sequence[float], lam: float, *, sparsity: float
) -> list[float]:
    """Map outlier percentages to shares.

    Args:
        outliers: of each block.
        lam: half of the distance between the largest and the smallest share.
        sparsity: mean of the shares.

    Returns:
        Share of removed weights of each block, before projection.
    """
    return around(outliers, lam, sparsity=sparsity)


class Owl(Allocator):
    """Remove less from blocks with more outliers."""

    name: ClassVar[str] = "owl"
    title: ClassVar[str] = "OWL"
    paper: ClassVar[str] = "Yin et al. 2023, arXiv 2310.05175"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MOMENTS})

    lam: float = Field(
        default=0.08,
        ge=0.0,
        le=0.5,
        description="half of the distance between the largest and smallest share",
    )
    m: float = Field(
        default=5.0,
        gt=0.0,
        description="a score above this many times the block's mean is an outlier",
    )

    def measure(self, block: BlockView) -> float:
        """Return the percentage of outliers among the block's Wanda scores."""
        # Twice over the scores instead of keeping all of them: see block_scores.
        total, count = 0.0, 0
        for scores in block_scores(block):
            total += float(scores.sum(dtype=torch.float64))
            count += scores.numel()
        if total == 0.0:
            return math.nan
        limit = self.m * total / count
        above = sum(int((scores > limit).sum()) for scores in block_scores(block))
        return 100.0 * above / count

    def ratios(
        self, measures: Sequence[float], *, sizes: Sequence[int], sparsity: float
    ) -> list[float]:
        """Propose shares by :func:`owl_ratios`."""
        known = complete(measures, blocks=len(sizes))
        return owl_ratios(known, self.lam, sparsity=sparsity)
