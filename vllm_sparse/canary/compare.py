"""How far a layer's result is from the dense one, in two numbers."""

from __future__ import annotations

import torch


def compare(result: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Return the relative error and the cosine distance of a result.

    What has no number, because a result is not finite or the dense one is zero, counts
    1: as wrong as a layer that returns nothing. Equal results are 0 apart, zeros too.

    Args:
        result: ``[1, O]``, any floating dtype.
        dense: of the same shape and device.

    Returns:
        ``[2]`` float64: ``|result - dense| / |dense|`` and ``1 - cosine``. Nothing
        waits for the device.
    """
    y, reference = result.double().flatten(), dense.double().flatten()
    gap, length = (y - reference).norm(), reference.norm()
    cosine = y.dot(reference) / (y.norm() * length)
    both = torch.stack((gap / length, (1 - cosine).clamp(0, 2)))
    both = torch.nan_to_num(both, nan=1.0, posinf=1.0)
    return torch.where(gap == 0, torch.zeros_like(both), both)
