"""What a compensation is: a new weight with the same zeros, or a bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from offline_prune.options import Options
from offline_prune.statistics.needs import Need

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics


class Compensation(Options):
    """Base of the compensations; a subclass's fields are its options.

    :meth:`apply` comes first, then :meth:`bias` with the weight that it returned.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    makes_bias: ClassVar[bool] = False

    @property
    def required(self) -> frozenset[Need]:
        """Statistics that these options need."""
        return self.needs

    def apply(
        self,
        dense: torch.Tensor,
        pruned: torch.Tensor,
        keep: torch.Tensor,
        statistics: InputStatistics | None,
    ) -> torch.Tensor:
        """Return a better weight; by default the pruned one itself.

        Args:
            dense: float32 ``[O, K]``, before pruning.
            pruned: float32 ``[O, K]``, zero where removed; unchanged.
            keep: bool ``[O, K]``, True where the weight stays.
            statistics: of its K inputs; may be None if :attr:`required` is empty.

        Returns:
            float32 ``[O, K]``, zero where removed.

        Raises:
            ValueError: if the statistics are missing or do not fit.
        """
        return pruned

    def bias(
        self,
        dense: torch.Tensor,
        pruned: torch.Tensor,
        statistics: InputStatistics | None,
    ) -> torch.Tensor:
        """Return what is to be added to the linear's bias; by default nothing.

        Args:
            dense: float32 ``[O, K]``, before pruning.
            pruned: float32 ``[O, K]``, as it will be saved.
            statistics: of its K inputs; may be None if :attr:`required` is empty.

        Returns:
            float32 ``[O]``; zeros unless :attr:`makes_bias`.

        Raises:
            ValueError: if the statistics are missing or do not fit.
        """
        return dense.new_zeros(len(dense))

    def inputs(
        self, weight: torch.Tensor, statistics: InputStatistics | None
    ) -> InputStatistics:
        """Return the statistics after checking that they are those of ``weight``.

        Raises:
            ValueError: if they are missing, or of another number of inputs.
        """
        found = "no" if statistics is None else str(statistics.features)
        if statistics is None or statistics.features != weight.shape[1]:
            raise ValueError(
                f"Compensation {self.name}: statistics of {found} inputs for a weight "
                f"of shape {tuple(weight.shape)}. Expected those of this layer's "
                f"{weight.shape[1]} inputs: calibrate, and pass them on."
            )
        return statistics
