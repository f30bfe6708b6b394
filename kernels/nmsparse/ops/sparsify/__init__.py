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
    x: torch.Tensor,
    pattern: Pattern,
    *,
    criterion: str = DEFAULT_CRITERION,
    correction: Correction = NONE,
) -> torch.Tensor:
    """Zero all but the best N of every M consecutive channels of each token.

    Args:
        x: ``[..., K]`` float16, bfloat16 or float32. Not modified.
        pattern: which elements may stay.
        criterion: name of the score that ranks them.
        correction: shifts and the factor of the criterion; no variance, which
            ``compact`` and ``sparsify_online`` return.

    Returns:
        A new tensor like ``x``; kept values are bit-identical to the input, or what a
        shift leaves of it.

    Raises:
        ValueError: if K is not a multiple of M, the criterion is unknown or has no
            factor, or a part of the correction has another shape.
        TypeError: for another dtype.
    """
    backend = choose(Call.of("sparsify", x, pattern, criterion))
    if correction is NONE:
        plain: torch.Tensor = backend(x, pattern, criterion)
        return plain
    tokens = x.numel() // max(1, x.shape[-1])
    correction.check(tokens, x.shape[-1], subject="sparsify")
    if correction.variance:
        raise ValueError(
            "sparsify: the correction asks for variance, which has no place in the "
            "result. Expected none: use compact or sparsify_online."
        )
    result: torch.Tensor = backend(x, pattern, criterion, correction=correction)
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
