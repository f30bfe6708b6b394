"""WINA: magnitude times the norm of the weights a channel meets.

arXiv 2505.19427: ``|x_k| * ||W_:k||_2``, over all rows of a fused weight, so that its
parts share one choice. Computed once, when the layer is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.criteria.base import Criterion
from nmsparse.criteria.columns import column_squares

if TYPE_CHECKING:
    import torch


class Wina(Criterion):
    """``|u_k| * ||W_:k||_2``."""

    name = "wina"
    title = "WINA"
    paper = "2505.19427"
    needs = "weight"

    def factor(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``||W_:k||_2``; of row shards, the squares add up."""
        return column_squares(weight).sqrt().float()


wina = Wina()
