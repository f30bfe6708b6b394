"""``sparsify`` and ``compact``: a dense activation to an N:M one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.criteria import DEFAULT_CRITERION
from nmsparse.dispatch import Call, choose
from nmsparse.ops.sparsify.compacted import CompactActivation
from nmsparse.ops.sparsify.correction import NONE, Correction
from nmsparse.pattern import Pattern

if TYPE_CHECKING:
    import torch

__all__ = ["CompactActivation", "Correction", "compact", "sparsify"]


def sparsify(
    x: torch.Tensor, pattern: Pattern, *, criterion: str = DEFAULT_CRITERION
) -> torch.Tensor:
    """Zero all but the best N of every M consecutive channels of each token.

    Args:
        x: ``[..., K]`` float16, bfloat16 or float32. Not modified.
        pattern: which elements may stay.
        criterion: name of the score that ranks them.

    Returns:
        A new tensor like ``x``; kept values are bit-identical to the input.

    Raises:
        ValueError: if K is not a multiple of M, or the criterion is unknown.
        TypeError: for another dtype.
    """
    backend = choose(Call.of("sparsify", x, pattern, criterion))
    result: torch.Tensor = backend(x, pattern, criterion)
    return result


def compact(
    x: torch.Tensor,
    pattern: Pattern,
    *,
    criterion: str = DEFAULT_CRITERION,
    correction: Correction = NONE,
) -> CompactActivation:
    """Return only the kept channels of each token, in ascending order.

    Args:
        x: ``[T, K]`` float16, bfloat16 or float32.
        pattern: which elements stay.
        criterion: name of the score that ranks them.
        correction: shifts, score factors and variance; none by default.

    Returns:
        Values and channel indices, both ``[T, K // M * N]``, and scales if asked for.

    Raises:
        ValueError: as :func:`sparsify`, if ``x`` is not two-dimensional, or if a part
            of the correction has another shape.
    """
    if x.dim() != 2:
        raise ValueError(
            f"compact: x has shape {tuple(x.shape)}. Expected [T, K]: flatten it first."
        )
    correction.check(*x.shape)
    backend = choose(Call.of("compact", x, pattern, criterion))
    result: CompactActivation = backend(x, pattern, criterion, correction)
    return result
