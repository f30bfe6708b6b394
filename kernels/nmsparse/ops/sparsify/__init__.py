"""``sparsify`` and ``compact``: a dense activation to an N:M one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.criteria import DEFAULT_CRITERION
from nmsparse.dispatch import Call, choose
from nmsparse.ops.sparsify.compacted import CompactActivation
from nmsparse.pattern import Pattern

if TYPE_CHECKING:
    import torch

__all__ = ["CompactActivation", "compact", "sparsify"]


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
    backend = choose(Call.of("sparsify", x, pattern))
    result: torch.Tensor = backend(x, pattern, criterion)
    return result


def compact(
    x: torch.Tensor, pattern: Pattern, *, criterion: str = DEFAULT_CRITERION
) -> CompactActivation:
    """Return only the kept channels of each token, in ascending order.

    Args:
        x: ``[T, K]`` float16, bfloat16 or float32.
        pattern: which elements stay.
        criterion: name of the score that ranks them.

    Returns:
        Values and channel indices, both ``[T, K // M * N]``.

    Raises:
        ValueError: as :func:`sparsify`, or if ``x`` is not two-dimensional.
    """
    if x.dim() != 2:
        raise ValueError(
            f"compact: x has shape {tuple(x.shape)}. Expected [T, K]: flatten it first."
        )
    backend = choose(Call.of("compact", x, pattern))
    result: CompactActivation = backend(x, pattern, criterion)
    return result
