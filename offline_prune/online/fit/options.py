"""Options of the fit."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from offline_prune.options import Options


class FitOptions(Options):
    """How learned parameters are fitted; defaults are our formulation."""

    rank: int = Field(default=16, ge=1, description="Rank of R-Sparse's matrices.")
    ridge: float = Field(
        default=1e-3,
        ge=0.0,
        description="Pull of least squares towards no correction, relative to the mean "
        "energy of the regressors.",
    )
    target: Literal["same_input", "dense_stream"] = Field(
        default="same_input",
        description="What a sparse layer or block is compared with: the dense one on "
        "the same input of the sparse stream, or its output in the dense stream.",
    )
    shift: Literal["mean", "median"] = Field(
        default="mean", description="Statistic of a channel that L-PTS subtracts."
    )
    weight_clip: float = Field(
        default=4.0,
        ge=1.0,
        description="Greatest weight of a token, in medians of its window.",
    )
    held_out: float = Field(
        default=0.25,
        gt=0.0,
        lt=1.0,
        description="Share of the windows, the last ones, that only judge.",
    )
    steps: int = Field(
        default=0, ge=0, description="AdamW steps a block after the closed forms."
    )
    learning_rate: float = Field(
        default=1e-4,
        gt=0.0,
        description="Of these steps, in natural units of each parameter.",
    )

    def fitted(self, windows: int) -> int:
        """Return how many of the windows, the first ones, are fitted on.

        Args:
            windows: their number, at least 2: one is always left to judge.
        """
        return min(windows - 1, max(1, round(windows * (1 - self.held_out))))
