"""Magnitude criterion: keep the largest absolute values.

Called ACT in arXiv 2509.22166. Scores keep the dtype of the activation: no arithmetic,
so no rounding.
"""

from __future__ import annotations

from nmsparse.criteria.base import Criterion


class Magnitude(Criterion):
    """``|u|``."""

    name = "magnitude"
    title = "Magnitude (ACT)"
    paper = "2509.22166"


magnitude = Magnitude()
