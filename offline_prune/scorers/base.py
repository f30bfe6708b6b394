"""What a scorer is: scores of a linear's weights, and the pruned linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from offline_prune.options import Options
from offline_prune.selection import Compare, LayerTarget, select
from offline_prune.statistics.needs import Need

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics


@dataclass(frozen=True, slots=True)
class Pruned:
    """One pruned linear.

    Attributes:
        weight: float32 ``[O, K]``, zero where removed.
        keep: bool ``[O, K]``, True where the weight stays.
        fallback: why the scorer did not do what its name says; None if it did.
    """

    weight: torch.Tensor
    keep: torch.Tensor
    fallback: str | None = None


class Scorer(Options):
    """Base of the scorers; a subclass's fields are its options.

    Subclasses give :meth:`scores`, or override :meth:`prune` where choosing and
    updating cannot be separated.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    default_compare: ClassVar[Compare] = "row"

    compare: Compare | None = Field(
        default=None,
        description="Weights compared with each other: those of a row (equally many go "
        "from each) or of the whole layer. Default: as the paper does.",
    )

    @property
    def required(self) -> frozenset[Need]:
        """Statistics that these options need."""
        return self.needs

    @property
    def comparison(self) -> Compare:
        """The group in which scores are compared."""
        return self.compare or self.default_compare

    def scores(
        self, weight: torch.Tensor, statistics: InputStatistics | None
    ) -> torch.Tensor:
        """Return the scores of a linear's weights.

        Args:
            weight: float32 ``[O, K]``.
            statistics: of its K inputs; may be None if :attr:`required` is empty.

        Returns:
            float32 ``[O, K]``, higher is kept.

        Raises:
            ValueError: if the statistics are missing or do not fit.
        """
        raise NotImplementedError

    def prune(
        self,
        weight: torch.Tensor,
        statistics: InputStatistics | None,
        target: LayerTarget,
    ) -> Pruned:
        """Remove weights of one linear.

        Where no calibration token reached the linear (an expert), or every score is
        zero, magnitude decides instead.

        Args:
            weight: ``[O, K]``, any floating dtype.
            statistics: of its K inputs; may be None if :attr:`required` is empty.
            target: how much to remove.

        Raises:
            ValueError: if the statistics are missing or do not fit, the target does
                not fit, or a score is NaN.
        """
        dense = weight.detach().float()
        if reason := self.unseen(statistics):
            return self.by_magnitude(dense, target, reason=reason)
        scores = self.scores(dense, statistics)
        if not bool(scores.any()):
            reason = f"every score of {self.name} is zero: pruned by magnitude"
            return self.by_magnitude(dense, target, reason=reason)
        keep = select(scores, target, compare=self.comparison)
        return Pruned(torch.where(keep, dense, 0.0), keep)

    def unseen(self, statistics: InputStatistics | None) -> str | None:
        """Return why only magnitude can decide, or None."""
        if not self.required or statistics is None:
            return None
        if statistics.tokens == 0:
            return "no calibration token reached this layer: pruned by magnitude"
        if not bool(statistics.sum_sq.any()):
            return "every calibration input of this layer is zero: pruned by magnitude"
        return None

    def by_magnitude(
        self, weight: torch.Tensor, target: LayerTarget, *, reason: str
    ) -> Pruned:
        """Remove the smallest weights, compared as this scorer does, and say why."""
        keep = select(weight.abs(), target, compare=self.comparison)
        return Pruned(torch.where(keep, weight, 0.0), keep, reason)

    def inputs(
        self, weight: torch.Tensor, statistics: InputStatistics | None
    ) -> InputStatistics:
        """Return the statistics after checking that they are those of ``weight``.

        Raises:
            ValueError: if they are missing, or of another number of inputs.
        """
        if statistics is None:
            needs = ", ".join(sorted(need.value for need in self.required))
            raise ValueError(
                f"Scorer {self.name}: no input statistics. Expected those of the "
                f"layer's {weight.shape[1]} inputs ({needs}): calibrate first, or use "
                "the scorer magnitude."
            )
        if statistics.features != weight.shape[1]:
            raise ValueError(
                f"Scorer {self.name}: statistics of {statistics.features} inputs for a "
                f"weight of shape {tuple(weight.shape)}. Expected {weight.shape[1]}: "
                "pass the statistics of this layer."
            )
        return statistics
