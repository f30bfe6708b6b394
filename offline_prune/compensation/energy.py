"""Energy compensation on weights (Yu et al. 2026, arXiv 2602.07375); our formulation.

For each column, with the mean ``mu_j`` of the dense column and the energies
``E_j = sum_i (W_ij - mu_j)^2`` and ``Ehat_j`` of the pruned column about the same mean
(zeros included): ``g_j = clip(sqrt(E_j / Ehat_j), low, high)`` and
``What_ij = mu_j + g_j (What_ij - mu_j)`` where the weight stays. Then the same over
rows, with what the columns left. The order, the centring and the clipping are the
paper's; its limits and whether it is affine or multiplicative are not known to us.

A bet on keeping the scale of activations through depth, not a reconstruction: published
counter-examples have it lose to plain pruning by far. It needs no data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from offline_prune.compensation.base import Compensation

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics


class Energy(Compensation):
    """Rescale what stays of each column, then row, to the dense centred energy."""

    name: ClassVar[str] = "energy"
    title: ClassVar[str] = "Energy of weights"
    paper: ClassVar[str] = "Yu et al. 2026, arXiv 2602.07375; our formulation"

    mode: Literal["affine", "multiplicative"] = Field(
        default="affine",
        description="Scale the distance from the dense mean, or the weight itself.",
    )
    columns: bool = Field(default=True, description="Do the step over columns.")
    rows: bool = Field(default=True, description="Do the step over rows, after it.")
    low: float = Field(default=0.5, ge=0.0, le=1.0, description="Least scale.")
    high: float = Field(default=2.0, ge=1.0, description="Greatest scale.")

    def apply(
        self,
        dense: torch.Tensor,
        pruned: torch.Tensor,
        keep: torch.Tensor,
        statistics: InputStatistics | None,
    ) -> torch.Tensor:
        """Return the rescaled weight; see :meth:`Compensation.apply`."""
        weight = pruned
        for dim, wanted in ((0, self.columns), (1, self.rows)):
            if wanted:
                weight = self._step(dense, weight, keep, dim=dim)
        return weight

    def _step(
        self,
        dense: torch.Tensor,
        weight: torch.Tensor,
        keep: torch.Tensor,
        *,
        dim: int,
    ) -> torch.Tensor:
        """Rescale along one dimension.

        Args:
            dense: float32 ``[O, K]``.
            weight: float32 ``[O, K]``, zero where removed.
            keep: bool ``[O, K]``.
            dim: the dimension summed over: 0 scales columns, 1 rows.
        """
        centre = dense.mean(dim, keepdim=True)
        energy = (dense - centre).square().sum(dim, keepdim=True)
        distance = weight - centre
        found = distance.square().sum(dim, keepdim=True)
        # Nothing to scale up: the weight is constant, and stays.
        scale = torch.where(found > 0, (energy / found).sqrt(), 1.0)
        scale = scale.clamp(self.low, self.high)
        # As a difference, so that a scale of 1 leaves every bit as it is.
        step = distance if self.mode == "affine" else weight
        return torch.where(keep, weight + (scale - 1.0) * step, 0.0)
