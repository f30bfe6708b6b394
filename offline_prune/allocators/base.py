"""What an allocator is: a measure of each block, and a map from measures to shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from offline_prune.options import Options
from offline_prune.statistics.inputs import InputStatistics
from offline_prune.statistics.needs import Need


@dataclass(frozen=True, slots=True)
class BlockView:
    """One decoder block of the dense model.

    Attributes:
        index: position of the block, from 0.
        weights: name of a linear to its weight ``[O, K]``, any floating dtype.
        statistics: name of a linear to the statistics of its input; may lack linears
            for an allocator that needs none.
    """

    index: int
    weights: Mapping[str, torch.Tensor]
    statistics: Mapping[str, InputStatistics]


class Allocator(Options, ABC):
    """Split a budget over blocks.

    Attributes:
        name: name in the registry.
        title: the method's name, as its paper writes it.
        paper: authors, year, arXiv id.
        needs: statistics of the inputs that :meth:`measure` reads.
        measures: whether :meth:`measure` must be called for each block.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    measures: ClassVar[bool] = True

    def measure(self, block: BlockView) -> float | None:
        """Measure one block of the dense model.

        Returns:
            A number; NaN if nothing of the block can be measured (an all-zero block,
            experts that no token reached); None if the allocator measures nothing.

        Raises:
            InputError: if a weight or a statistic is not finite.
        """
        return None

    @abstractmethod
    def ratios(
        self, measures: Sequence[float], *, sizes: Sequence[int], sparsity: float
    ) -> list[float]:
        """Propose the share of weights to remove from each block.

        Args:
            measures: of each block; NaN counts as the mean of the others. Ignored
                by an allocator that measures nothing.
            sizes: number of weights of each block that can be removed.
            sparsity: share of all weights to remove.

        Returns:
            Raw shares: their mean may miss ``sparsity`` and they may leave [0, 1]
            until ``offline_prune.budget.project`` has been applied. Equal measures
            give equal shares.

        Raises:
            ValueError: if there are not as many measures as sizes.
        """
