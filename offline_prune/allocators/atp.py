"""ATP: shares that rise linearly with depth, one slope for the model. Needs no data.

Huang et al. 2025, "Determining Layer-wise Sparsity for Large Language Models Through a
Theoretical Perspective", arXiv 2502.14770: ``s_i = S - beta (L-1) / 2 + beta i``. The
slope is searched on a grid; the released script picks it on the test text, here the
pipeline picks it on held-out calibration text. A schedule that measures nothing is also
the null model that every measured allocation should beat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from typing_extensions import Self

from offline_prune.allocators.base import Allocator
from offline_prune.errors import InputError


def steepest(sparsity: float, blocks: int) -> float:
    """Return the largest slope that keeps all shares in [0, 1]; 0 for one block."""
    if blocks < 2:
        return 0.0
    return 2.0 * min(sparsity, 1.0 - sparsity) / (blocks - 1)


def candidates(
    sparsity: float, blocks: int, *, step: float = 0.002, most: int = 9
) -> list[float]:
    """Return the slopes to try, ascending: multiples of ``step`` up to the steepest.

    Args:
        sparsity: mean share.
        blocks: number of blocks.
        step: distance of the grid; the paper's.
        most: at most so many. A model of few blocks allows steep slopes and would
            need hundreds of the paper's steps: its grid is widened instead (ours).

    Returns:
        Slopes above 0; 0 is the uniform allocation. None for a single block.
    """
    limit = steepest(sparsity, blocks)
    count = math.floor(limit / step + 1e-9)
    if count > most:
        count, step = most, limit / (most + 1)
    return [step * trial for trial in range(1, count + 1)]


def atp_ratios(blocks: int, beta: float, *, sparsity: float) -> list[float]:
    """Return shares that rise by ``beta`` from block to block around ``sparsity``."""
    middle = (blocks - 1) / 2.0
    return [sparsity + beta * (index - middle) for index in range(blocks)]


class Atp(Allocator):
    """Remove more from deeper blocks, along a straight line."""

    name: ClassVar[str] = "atp"
    title: ClassVar[str] = "ATP"
    paper: ClassVar[str] = "Huang et al. 2025, arXiv 2502.14770"
    measures: ClassVar[bool] = False

    beta: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="difference of the shares of neighbouring blocks; searched on "
        "held-out calibration text if not given",
    )
    step: float = Field(
        default=0.002, gt=0.0, le=1.0, description="distance of the slopes searched"
    )
    trials: int = Field(
        default=9, ge=1, description="most slopes searched; each prunes the model once"
    )

    def slopes(self, sparsity: float, blocks: int) -> list[float]:
        """Return the slopes to try: the given one, or :func:`candidates`."""
        if self.beta is not None:
            return [self.beta]
        return candidates(sparsity, blocks, step=self.step, most=self.trials)

    def with_beta(self, beta: float) -> Self:
        """Return a copy with this slope."""
        return self.model_validate({**self.model_dump(), "beta": beta})

    def ratios(
        self, measures: Sequence[float], *, sizes: Sequence[int], sparsity: float
    ) -> list[float]:
        """Propose shares by :func:`atp_ratios`.

        Raises:
            InputError: if the slope is not known yet, or so steep that shares leave
                [0, 1].
        """
        if self.beta is None:
            raise InputError(
                "Allocator atp: beta is not set. Expected a slope such as 0.01, or a "
                "search over `slopes` on held-out calibration text: set beta, or run "
                "the pipeline, which searches."
            )
        blocks = len(sizes)
        limit = steepest(sparsity, blocks)
        if blocks > 1 and self.beta > limit * (1.0 + 1e-9):
            raise InputError(
                f"Allocator atp: beta {self.beta} is too steep for {blocks} blocks at "
                f"sparsity {sparsity}. Expected at most {limit:.6f}, beyond which "
                "shares leave [0, 1]: lower beta."
            )
        return atp_ratios(blocks, self.beta, sparsity=sparsity)
