"""C++ products over O-major weights: bitmask-packed or dense (``csrc/dot.h``)."""

from __future__ import annotations

import torch

from nmsparse.native import abi
from nmsparse.ops.cpu import pointer
from nmsparse.packed import PackedWeight


def packed_linear_cpu(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``[T, O]`` for ``x`` (``[T, K]``); values are expanded in registers."""
    return _dot(
        x,
        weight.values,
        bias,
        outputs=weight.shape[0],
        bits=weight.bits,
        offsets=weight.offsets,
    )


def stream_o_major(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply dense tokens by a dense weight, for few tokens.

    Args:
        x: ``[T, K]``.
        weight: ``[O, K]``, rows contiguous: as Hugging Face stores it.
        bias: ``[O]`` or None.

    Returns:
        ``[T, O]`` in the dtype of ``x``, accumulated in float32.
    """
    return _dot(x, weight, bias, outputs=weight.shape[0])


def _dot(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    outputs: int,
    bits: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty(x.shape[0], outputs, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    if x.stride(1) != 1:
        x = x.contiguous()
    if bits is None and weight.stride(1) != 1:
        weight = weight.contiguous()
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    args = abi.DotArgs(
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        bits=pointer(bits),
        offsets=pointer(offsets),
        out=out.data_ptr(),
        bias=pointer(bias),
        tokens=x.shape[0],
        channels=x.shape[1],
        outputs=outputs,
        x_stride=x.stride(0),
        weight_stride=0 if bits is not None else weight.stride(0),
        out_stride=outputs,
        dtype=abi.DTYPES[x.dtype],
        threads=torch.get_num_threads(),
    )
    abi.call(abi.kernels().nms_dot, args)
    return out
