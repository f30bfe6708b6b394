"""An independent, slow selection in plain Python: what the tensor code must agree with.

Written from the contract, not from the code: per group, NaN first, then the higher
score, then the lower index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def keep_of_group(scores: Sequence[float], kept: int) -> list[bool]:
    """Return which elements of one group stay."""

    def rank(index: int) -> tuple[int, float, int]:
        score = scores[index]
        # Python compares -0.0 and 0.0 as equal; a NaN compares as nothing at all.
        return (0, 0.0, index) if math.isnan(score) else (1, -score, index)

    best = set(sorted(range(len(scores)), key=rank)[:kept])
    return [index in best for index in range(len(scores))]


def keep_of_row(scores: Sequence[float], kept: int, group: int) -> list[bool]:
    """Return which elements of a row of groups stay."""
    keep: list[bool] = []
    for start in range(0, len(scores), group):
        keep += keep_of_group(scores[start : start + group], kept)
    return keep


def sparsify_row(row: Sequence[float], kept: int, group: int) -> list[float]:
    """Return a row with all but the largest magnitudes of each group set to zero."""
    keep = keep_of_row([abs(value) for value in row], kept, group)
    return [value if stays else 0.0 for value, stays in zip(row, keep, strict=True)]
