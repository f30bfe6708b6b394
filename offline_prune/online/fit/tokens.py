"""What a token counts: robust weights, and errors relative to the token's size."""

from __future__ import annotations

import torch


def token_weights(dense: torch.Tensor, *, clip: float, first: bool) -> torch.Tensor:
    """Return ``min(1 / |dense_t|^2, clip * median)``, float32 ``[T]``.

    Args:
        dense: ``[T, O]`` float, outputs of the dense layer or block.
        clip: greatest weight, in medians of the window: a token whose dense output is
            all but zero would rule otherwise.
        first: whether row 0 is position 0 of the window, which weighs nothing.
    """
    weights = 1 / dense.double().square().sum(1)
    weights = torch.where(weights.isnan(), 0, weights)
    if first:
        weights[:1] = 0
    usable = weights[(weights > 0) & weights.isfinite()]
    if not len(usable):
        return torch.zeros_like(weights).float()
    return weights.clamp(max=clip * float(usable.median())).float()


def robust_error(
    out: torch.Tensor, dense: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted squared error of all tokens, a scalar with a gradient.

    Args:
        out: ``[T, O]`` float.
        dense: ``[T, O]`` float.
        weights: ``[T]``, from :func:`token_weights`. Where they are not clipped, a
            token adds its relative squared error.
    """
    squares = (out.float() - dense.float()).square().sum(1)
    # where: a token that weighs nothing may be infinite.
    return torch.where(weights > 0, weights * squares, 0).sum()


def relative_errors(out: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Return ``|out_t - dense_t| / |dense_t|``, float32 ``[T]``; 0 for 0 / 0.

    Args:
        out: ``[T, O]`` float.
        dense: ``[T, O]`` float.
    """
    size = dense.float().norm(dim=1)
    error = (out.float() - dense.float()).norm(dim=1)
    return torch.where(error > 0, error / size, 0)
