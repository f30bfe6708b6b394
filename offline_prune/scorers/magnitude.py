"""Magnitude: ``|W|``, no data. The baseline of every table.

Compared over the whole layer. From 70% removed a language model does not survive it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from offline_prune.scorers.base import Scorer
from offline_prune.selection import Compare

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics


class Magnitude(Scorer):
    """Score a weight by its absolute value (Han et al. 2015, arXiv 1506.02626)."""

    name: ClassVar[str] = "magnitude"
    title: ClassVar[str] = "Magnitude"
    paper: ClassVar[str] = "Han et al. 2015, arXiv 1506.02626"
    default_compare: ClassVar[Compare] = "layer"

    def scores(
        self, weight: torch.Tensor, statistics: InputStatistics | None
    ) -> torch.Tensor:
        """Return ``|W|``, float32 ``[O, K]``; ``statistics`` are not read."""
        # float32: the absolute values of bfloat16 have ties enough already.
        return weight.float().abs()
