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
) -> torch.Tensor:
    """Return ``x`` (``[..., K]``) with the dropped channels set to zero.

    Args:
        x: the activation.
        pattern: which elements stay.
        criterion: ``magnitude``.
        nonzeros: ``[1]`` int64, incremented by the number of kept values that are not
            zero; None not to count.
    """
    kept, group = pattern.group(x.shape[-1])
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    flat = x.reshape(-1, x.shape[-1])
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    args = abi.SparsifyArgs(
        x=flat.data_ptr(),
        dense=out.data_ptr(),
        nonzeros=pointer(nonzeros),
        tokens=flat.shape[0],
        channels=flat.shape[1],
        x_stride=flat.stride(0),
        dtype=abi.DTYPES[x.dtype],
        kept=kept,
        group=group,
        threads=torch.get_num_threads(),
    )
    abi.call(abi.kernels().nms_sparsify, args)
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
        criterion: ``magnitude``.
        correction: shifts, factors and variance.
        nonzeros: as in :func:`sparsify_cpu`.
    """
    tokens, channels = x.shape
    kept, group = pattern.group(channels)
    per_token = channels // group * kept
    values = torch.empty(tokens, per_token, dtype=x.dtype, device=x.device)
    indices = torch.empty(tokens, per_token, dtype=torch.int32, device=x.device)
    # Ones, for K = 0; and float32, whatever the default dtype is at the moment.
    scale = (
        torch.ones(tokens, dtype=torch.float32, device=x.device)
        if correction.variance
        else None
    )
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
        values=values.data_ptr(),
        indices=indices.data_ptr(),
        scale=pointer(scale),
        nonzeros=pointer(nonzeros),
        tokens=tokens,
        channels=channels,
        x_stride=x.stride(0),
        dtype=abi.DTYPES[x.dtype],
        kept=kept,
        group=group,
        threads=torch.get_num_threads(),
    )
    if values.numel():
        abi.call(abi.kernels().nms_sparsify, args)
    return CompactActivation(values, indices, channels, scale)
