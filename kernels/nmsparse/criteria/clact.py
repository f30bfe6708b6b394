"""CLACT: magnitude times the norm of the channel over the tokens of the step.

arXiv 2509.22166: ``|x_tj| / ||x_t|| * ||x_:j||``. Groups lie within one token, so the
norm of the token changes no choice and is left out. The norm of a channel is taken over
all tokens that are sparsified in the step: **a token's result depends on the tokens it
is computed with**, on how prompts are cut into steps, and on padding. With one token
the score is its square, so the choice is that of the magnitude.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.criteria.base import Criterion

if TYPE_CHECKING:
    import torch


class Clact(Criterion):
    """``|u_tk| * ||u_:k||_2``."""

    name = "clact"
    title = "CLACT"
    paper = "2509.22166"
    needs = "batch"
    per_token = False

    def batch_factor(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return ``||x_:k||_2`` over the tokens of the step; None for one token."""
        if x.shape[0] <= 1:
            # Squares could tie or overflow where the values do not.
            return None
        norms: torch.Tensor = x.float().norm(dim=0)
        return norms


clact = Clact()
