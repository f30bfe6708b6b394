"""Scorers whose scores are fixed before anything is removed; optional reconstruction.

RIA's official code can hand its selection to SparseGPT, which then only updates the
weights that stay; nothing about that is RIA's own, so every scorer with fixed scores
from data can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field

from offline_prune.scorers.base import Pruned, Scorer
from offline_prune.scorers.reconstruction import reconstruct
from offline_prune.selection import LayerTarget
from offline_prune.statistics.needs import Need

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics


class FixedScorer(Scorer):
    """Base of scorers that select first and may update the remaining weights after."""

    reconstruct: bool = Field(
        default=False,
        description="Update the weights that stay as SparseGPT does, to make up for "
        "those removed. Needs the Gram matrix of the inputs.",
    )

    @property
    def required(self) -> frozenset[Need]:
        """Statistics that these options need."""
        return self.needs | {Need.GRAM} if self.reconstruct else self.needs

    def prune(
        self,
        weight: torch.Tensor,
        statistics: InputStatistics | None,
        target: LayerTarget,
    ) -> Pruned:
        """Remove weights of one linear; see :meth:`Scorer.prune`."""
        pruned = super().prune(weight, statistics, target)
        if not self.reconstruct or self.unseen(statistics):
            return pruned
        inputs = self.inputs(weight, statistics)
        done = reconstruct(weight, inputs.hessian(), pruned.keep)
        notes = [note for note in (pruned.fallback, done.note) if note]
        return Pruned(done.weight, done.keep, "; ".join(notes) or None)
