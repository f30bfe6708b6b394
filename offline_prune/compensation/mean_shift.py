"""Mean shift: ``b_i += sum_j (W_ij - What_ij) E x_j``; our formulation.

It restores the mean of every output exactly and lowers the layer's squared error by
exactly the square of the shift on the calibration inputs, so it never harms there. The
layer needs a bias, which has to be saved with the model. CVR
(:mod:`offline_prune.scorers.cvr`) counts on it: what it removes first are weights of
inputs that hardly vary, whose contribution is this constant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from offline_prune.compensation.base import Compensation
from offline_prune.statistics.needs import Need

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics


class MeanShift(Compensation):
    """Give back what the removed weights contributed on average, as a bias."""

    name: ClassVar[str] = "mean_shift"
    title: ClassVar[str] = "Mean shift"
    paper: ClassVar[str] = "our formulation, for CVR of arXiv 2602.07375"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MOMENTS})
    makes_bias: ClassVar[bool] = True

    def bias(
        self,
        dense: torch.Tensor,
        pruned: torch.Tensor,
        statistics: InputStatistics | None,
    ) -> torch.Tensor:
        """Return the mean of what is missing from each output, float32 ``[O]``.

        Args:
            dense: float32 ``[O, K]``, before pruning.
            pruned: float32 ``[O, K]``, as it will be saved.
            statistics: of its K inputs; zeros result if they saw no token.

        Raises:
            ValueError: if the statistics are missing or do not fit.
        """
        mean = self.inputs(dense, statistics).mean.to(dense.device)
        return (dense - pruned) @ mean
