"""DLP: blocks with smaller scores keep more.

Chen et al. 2025, "DLP: Dynamic Layerwise Pruning in Large Language Models", arXiv
2505.23807. A block's measure ``m`` is the mean of its Wanda scores (released code) or
their median (paper), its importance ``I_l = 1 - m_l / sum(m)``; shares follow by OWL's
map with ``alpha`` in place of lam. So a larger score means more pruning. Needs the
second moments of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from offline_prune.allocators.base import Allocator, BlockView
from offline_prune.allocators.importance import block_scores
from offline_prune.allocators.median import lower_median
from offline_prune.allocators.spread import around, complete
from offline_prune.statistics.needs import Need


def dlp_ratios(
    statistics: Sequence[float], alpha: float, *, sparsity: float
) -> list[float]:
    """Map score statistics to shares.

    Args:
        statistics: mean or median score of each block, at least 0.
        alpha: half of the distance between the largest and the smallest share.
        sparsity: mean of the shares.

    Returns:
        Share of removed weights of each block, before projection.
    """
    total = math.fsum(statistics)
    if total == 0.0:
        return [sparsity] * len(statistics)
    importance = [1.0 - value / total for value in statistics]
    return around(importance, alpha, sparsity=sparsity)


class Dlp(Allocator):
    """Remove more from blocks with larger scores."""

    name: ClassVar[str] = "dlp"
    title: ClassVar[str] = "DLP"
    paper: ClassVar[str] = "Chen et al. 2025, arXiv 2505.23807"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MOMENTS})

    alpha: float = Field(
        default=0.15,
        ge=0.0,
        le=0.5,
        description="half of the distance between the largest and smallest share; "
        "0.15 is meant for 70% sparsity, 0.10 for 60%, 0.04 for 50%",
    )
    statistic: Literal["mean", "median"] = Field(
        default="mean",
        description="of a block's scores: mean as in the released code, or median as "
        "in the paper",
    )

    def measure(self, block: BlockView) -> float:
        """Return the mean or the lower median of the block's Wanda scores."""
        if self.statistic == "median":
            return lower_median(lambda: block_scores(block))
        total, count = 0.0, 0
        for scores in block_scores(block):
            total += float(scores.sum(dtype=torch.float64))
            count += scores.numel()
        return total / count if count else math.nan

    def ratios(
        self, measures: Sequence[float], *, sizes: Sequence[int], sparsity: float
    ) -> list[float]:
        """Propose shares by :func:`dlp_ratios`."""
        known = complete(measures, blocks=len(sizes))
        return dlp_ratios(known, self.alpha, sparsity=sparsity)
