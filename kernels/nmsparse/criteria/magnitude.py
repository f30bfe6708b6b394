"""Magnitude criterion: keep the largest absolute values.

Called ACT in arXiv 2509.22166. A token's selection depends on that token alone.
"""

from __future__ import annotations

import torch


def score(x: torch.Tensor) -> torch.Tensor:
    """Return ``|x|`` (``[..., K]``, same dtype; no arithmetic, so no rounding)."""
    return x.abs()
