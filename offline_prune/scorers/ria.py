"""RIA: relative importance and activations (Zhang et al., ICLR 2024).

``(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||x_j||_2^a`` with ``a = 0.5``,
compared over the whole layer; the norm is Wanda's. With ``a = 0`` it is the paper's
"RI" and needs no data. The official code divides by zero where a row or column is
all zero; here sums have a floor, far below what a layer in use has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from offline_prune.scorers.fixed import FixedScorer
from offline_prune.selection import Compare
from offline_prune.statistics.needs import Need

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics


class Ria(FixedScorer):
    """Score a weight by its share of its row and its column, and its input's norm."""

    name: ClassVar[str] = "ria"
    title: ClassVar[str] = "RIA"
    paper: ClassVar[str] = "Zhang et al., Plug-and-Play, ICLR 2024"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MOMENTS})
    default_compare: ClassVar[Compare] = "layer"

    a: float = Field(
        default=0.5,
        ge=0.0,
        description="Exponent of the input's norm; 0 leaves the inputs out (RI).",
    )
    eps: float = Field(
        default=1e-8,
        gt=0.0,
        le=1e-2,
        description="Floor of a row's or column's sum, as a share of the mean sum.",
    )

    @property
    def required(self) -> frozenset[Need]:
        """Statistics that these options need."""
        return super().required if self.a else super().required - {Need.MOMENTS}

    def scores(
        self, weight: torch.Tensor, statistics: InputStatistics | None
    ) -> torch.Tensor:
        """Return RIA's scores, float32 ``[O, K]``.

        Args:
            weight: ``[O, K]``, any floating dtype.
            statistics: of its K inputs; may be None if ``a`` is 0.

        Raises:
            ValueError: if the statistics are missing or do not fit.
        """
        # float32: the shares are near 1 / K, among the subnormals of float16.
        scores = relative_importance(weight.float(), eps=self.eps)
        if self.a:
            norm = self.inputs(weight, statistics).norm.to(weight.device)
            scores *= norm**self.a
        return scores


def relative_importance(weight: torch.Tensor, *, eps: float = 1e-8) -> torch.Tensor:
    """Return each weight's share of its column plus its share of its row.

    Args:
        weight: float32 ``[O, K]``.
        eps: floor of the sums, as a share of their mean.

    Returns:
        float32 ``[O, K]``; sums to ``O + K`` unless a row or column is all zero.
    """
    sizes = weight.abs()
    columns, rows = sizes.sum(0, keepdim=True), sizes.sum(1, keepdim=True)
    return sizes / _floored(columns, eps) + sizes / _floored(rows, eps)


def _floored(sums: torch.Tensor, eps: float) -> torch.Tensor:
    floor = float(eps * sums.mean())
    return sums.clamp(min=max(floor, torch.finfo(sums.dtype).tiny))
