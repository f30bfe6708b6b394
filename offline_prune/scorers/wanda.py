"""Wanda: ``|W_ij| * ||x_j||_2``, compared within each row (arXiv 2306.11695).

The norm is ``sqrt(sum_t x_tj^2 / sequences)`` as in the official code; the constant
does not change what is kept. The paper's variant lets a row lose more where its scores
are uneven: of each row the longest prefix of ascending scores goes whose sum is at most
``alpha`` times the row's sum, one ``alpha`` for the layer. The official code bisects
``alpha`` until the sparsity is within 0.001. Here a weight's score is the ``alpha`` at
which it goes, so that the ordinary selection hits the exact count, which is the same
set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field, model_validator
from typing_extensions import Self

from offline_prune.errors import InputError
from offline_prune.scorers.base import Pruned
from offline_prune.scorers.fixed import FixedScorer
from offline_prune.selection import Compare, LayerTarget
from offline_prune.statistics.needs import Need

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics

_ROWS = 256


class Wanda(FixedScorer):
    """Score a weight by its magnitude times the norm of its input channel."""

    name: ClassVar[str] = "wanda"
    title: ClassVar[str] = "Wanda"
    paper: ClassVar[str] = "Sun et al. 2023, arXiv 2306.11695"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.MOMENTS})
    default_compare: ClassVar[Compare] = "row"

    variant: bool = Field(
        default=False,
        description="The paper's variant: rows lose the same share of their scores' "
        "sum instead of equally many weights. Unstructured only.",
    )

    @model_validator(mode="after")
    def _variant_has_its_own_group(self) -> Self:
        if self.variant and self.compare == "row":
            raise ValueError(
                "variant and compare 'row' contradict each other: the variant decides "
                "how many weights each row loses. Leave compare out."
            )
        return self

    @property
    def comparison(self) -> Compare:
        """The group in which scores are compared."""
        return "layer" if self.variant else super().comparison

    def scores(
        self, weight: torch.Tensor, statistics: InputStatistics | None
    ) -> torch.Tensor:
        """Return Wanda's scores, or the variant's shares; float32 ``[O, K]``.

        Args:
            weight: ``[O, K]``, any floating dtype.
            statistics: of its K inputs.

        Raises:
            ValueError: if the statistics are missing or do not fit.
        """
        norm = self.inputs(weight, statistics).norm.to(weight.device)
        scores = weight.float().abs() * norm
        return _cumulative_share(scores) if self.variant else scores

    def prune(
        self,
        weight: torch.Tensor,
        statistics: InputStatistics | None,
        target: LayerTarget,
    ) -> Pruned:
        """Remove weights of one linear; see :meth:`Scorer.prune`.

        Raises:
            InputError: if the variant is asked for an N:M pattern.
        """
        if self.variant and target.pattern is not None:
            raise InputError(
                f"Scorer wanda: the variant has no form for {target.pattern}, which "
                "fixes what each group loses. Leave variant out, or choose an "
                "unstructured sparsity."
            )
        return super().prune(weight, statistics, target)


def _cumulative_share(scores: torch.Tensor) -> torch.Tensor:
    """Return what share of its row's sum goes when a weight goes.

    Args:
        scores: float32 ``[O, K]``, not negative.

    Returns:
        float32 ``[O, K]``: sums over the scores up to each, in ascending order.
    """
    shares = torch.empty_like(scores)
    for start in range(0, len(scores), _ROWS):
        part = scores[start : start + _ROWS]
        # From the back, so that of equal scores the last one goes first.
        ordered, index = part.flip(1).sort(dim=1, stable=True)
        sums = ordered.cumsum(1)
        total = sums[:, -1:].clamp(min=torch.finfo(torch.float32).tiny)
        back = torch.empty_like(sums).scatter_(1, index, sums / total)
        shares[start : start + _ROWS] = back.flip(1)
    return shares
