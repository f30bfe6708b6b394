"""CVR: variance-calibrated scores (Yu et al. 2026, arXiv 2602.07375); our formulation.

``|W_ij| * v_j^(e/2) * (om_j + eps)^(-alpha/2)``: ``v_j`` is the variance of input j,
``om_j`` the variance of column j of the weight, ``e = alpha = 0.5``. Only the form of
the product is known from the paper; alpha, eps, the axis of the weight's variance and
the comparison within rows are ours (within a row only a factor per column matters).

An input that hardly varies scores near zero. That is right where its mean is
compensated (``mean_shift``); a layer that stays without a bias should use the
statistic ``second_moment``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from offline_prune.scorers.fixed import FixedScorer
from offline_prune.selection import Compare
from offline_prune.statistics.needs import Need

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics


class Cvr(FixedScorer):
    """Score a weight by its magnitude, calibrated by two variances of its channel."""

    name: ClassVar[str] = "cvr"
    title: ClassVar[str] = "CVR"
    paper: ClassVar[str] = "Yu et al. 2026, arXiv 2602.07375; our formulation"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MOMENTS})
    default_compare: ClassVar[Compare] = "row"

    alpha: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="How far the scale of a weight's column is removed: 0 not at all, "
        "1 wholly.",
    )
    exponent: float = Field(
        default=0.5,
        ge=0.0,
        description="Exponent of the input's scale: its standard deviation, or what "
        "takes its place by statistic.",
    )
    statistic: Literal["variance", "second_moment", "abs_mean", "winsorized"] = Field(
        default="variance",
        description="The input's scale: standard deviation, root mean square, mean "
        "absolute value, or root mean square with the largest values cut.",
    )
    quantile: float = Field(
        default=0.999,
        gt=0.5,
        le=1.0,
        description="winsorized: absolute values above this quantile of the channel "
        "are cut to it.",
    )
    eps: float = Field(
        default=1e-8,
        gt=0.0,
        description="Added to the columns' variances, as a share of their mean.",
    )

    @property
    def required(self) -> frozenset[Need]:
        """Statistics that these options need."""
        if self.statistic != "winsorized":
            return super().required
        return super().required - {Need.MOMENTS} | {Need.SAMPLE}

    def scores(
        self, weight: torch.Tensor, statistics: InputStatistics | None
    ) -> torch.Tensor:
        """Return CVR's scores, float32 ``[O, K]``.

        Args:
            weight: ``[O, K]``, any floating dtype.
            statistics: of its K inputs.

        Raises:
            ValueError: if the statistics are missing or do not fit.
        """
        dense = weight.float()
        scale = self._scale(self.inputs(dense, statistics)).to(dense.device)
        factor = scale**self.exponent
        if self.alpha:
            spread = dense.var(0, correction=0)
            spread += self.eps * spread.mean()
            # Columns that are constant all together have no scale to remove.
            spread = torch.where(spread > 0, spread, 1.0)
            factor = factor * spread ** (-self.alpha / 2)
        return dense.abs() * factor

    def _scale(self, statistics: InputStatistics) -> torch.Tensor:
        """Return the scale of every input, float32 ``[K]``."""
        if self.statistic == "variance":
            return statistics.variance.sqrt()
        if self.statistic == "second_moment":
            return statistics.second_moment.sqrt()
        if self.statistic == "abs_mean":
            return statistics.abs_mean
        if statistics.sample is None or not len(statistics.sample):
            raise ValueError(
                "Scorer cvr: no sample of input rows. Expected one for the statistic "
                "winsorized: collect the statistics with Need.SAMPLE."
            )
        return _winsorized_rms(statistics.sample, quantile=self.quantile)


def _winsorized_rms(sample: torch.Tensor, *, quantile: float) -> torch.Tensor:
    """Return ``sqrt(E min(|x_j|, quantile of |x_j|)^2)``.

    Args:
        sample: float32 ``[S, K]``, S at least 1.
        quantile: share of rows that are not cut; no interpolation, the lower one.

    Returns:
        float32 ``[K]``.
    """
    sizes = sample.abs()
    rank = max(1, int(quantile * len(sizes)))
    limit = sizes.kthvalue(rank, dim=0).values
    return sizes.minimum(limit).square().mean(0).sqrt()
