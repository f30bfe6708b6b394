"""Uniform: the same share from every block, the baseline of all published tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from offline_prune.allocators.base import Allocator


class Uniform(Allocator):
    """Remove the same share from every block."""

    name: ClassVar[str] = "uniform"
    title: ClassVar[str] = "Uniform"
    paper: ClassVar[str] = "baseline of all papers"
    measures: ClassVar[bool] = False

    def ratios(
        self, measures: Sequence[float], *, sizes: Sequence[int], sparsity: float
    ) -> list[float]:
        """Propose ``sparsity`` for every block."""
        return [sparsity] * len(sizes)
