"""C++ ``sparsify`` and ``compact``: score, select and write in one pass over a token.

``csrc/sparsify.h`` and ``csrc/select.h`` say how.
"""

from __future__ import annotations

import torch

from nmsparse.native import abi
from nmsparse.ops.cpu import floats, pointer
from nmsparse.ops.sparsify.compacted import CompactActivation
from nmsparse.ops.sparsify.correction import NONE, Correction
from nmsparse.pattern import Pattern


def sparsify_cpu(
    x: torch.Tensor,
    pattern: Pattern,
    criterion: str,
    nonzeros: torch.Tensor | None = None,
    *,
    correction: Correction = NONE,
) -> torch.Tensor:
    """Return ``x`` (``[..., K]``) with the dropped channels set to zero.

    Args:
        x: the activation.
        pattern: which elements stay.
        criterion: name of the score.
        nonzeros: ``[1]`` int64, incremented by the number of kept values that are not
            zero; None not to count.
        correction: shifts and factor.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not out.numel():
        pattern.group(x.shape[-1])
        return out
    correction = correction.with_factor_of(criterion, x)
    flat = x.reshape(-1, x.shape[-1])
    run_sparsify(flat, pattern, correction, dense=out, nonzeros=nonzeros)
    return out


def compact_cpu(
    x: torch.Tensor,
    pattern: Pattern,
    criterion: str,
    correction: Correction = NONE,
    nonzeros: torch.Tensor | None = None,
) -> CompactActivation:
    """Return the kept channels of ``x`` (``[T, K]``), ascending.

    Args:
        x: the activation.
        pattern: which elements stay.
        criterion: name of the score.
        correction: shifts, factors and variance.
        nonzeros: as in :func:`sparsify_cpu`.
    """
    tokens, channels = x.shape
    kept, group = pattern.group(channels)
    per_token = channels // group * kept
    values = torch.empty(tokens, per_token, dtype=x.dtype, device=x.device)
    indices = torch.empty(tokens, per_token, dtype=torch.int32, device=x.device)
    scale = new_scale(x) if correction.variance else None
    if values.numel():
        run_sparsify(
            x,
            pattern,
            correction.with_factor_of(criterion, x),
            values=values,
            indices=indices,
            scale=scale,
            nonzeros=nonzeros,
        )
    return CompactActivation(values, indices, channels, scale)


def new_scale(x: torch.Tensor) -> torch.Tensor:
    """Return where the scales of the tokens of ``x`` (``[T, K]``) go.

    Ones, for K = 0; and float32, whatever the default dtype is at the moment.
    """
    return torch.ones(x.shape[0], dtype=torch.float32, device=x.device)


def run_sparsify(
    x: torch.Tensor,
    pattern: Pattern,
    correction: Correction,
    *,
    values: torch.Tensor | None = None,
    indices: torch.Tensor | None = None,
    dense: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    nonzeros: torch.Tensor | None = None,
) -> None:
    """Run the kernel on ``x`` (``[T, K]``, not empty) and fill what is given.

    Args:
        x: the activation.
        pattern: which elements stay.
        correction: shifts and the factor of the scores.
        values: ``[T, kept]`` contiguous, together with ``indices`` (int32).
        indices: their channels.
        dense: T times K elements, contiguous.
        scale: ``[T]`` float32.
        nonzeros: as in :func:`sparsify_cpu`.
    """
    kept, group = pattern.group(x.shape[1])
    if x.stride(1) != 1:
        x = x.contiguous()
    # Named, so that converted copies live until the kernel returns.
    factor = floats(correction.factor)
    channel_shift = floats(correction.channel_shift)
    token_shift = floats(correction.token_shift)
    args = abi.SparsifyArgs(
        x=x.data_ptr(),
        factor=pointer(factor),
        channel_shift=pointer(channel_shift),
        token_shift=pointer(token_shift),
        values=pointer(values),
        indices=pointer(indices),
        dense=pointer(dense),
        scale=pointer(scale),
        nonzeros=pointer(nonzeros),
        tokens=x.shape[0],
        channels=x.shape[1],
        x_stride=x.stride(0),
        dtype=abi.DTYPES[x.dtype],
        kept=kept,
        group=group,
        threads=torch.get_num_threads(),
    )
    abi.call(abi.kernels().nms_sparsify, args)
