"""C++ ``linear``: only the rows of kept channels are read (``csrc/gather.h``).

Several tokens walk the union of their channels once, so a row is read once for all.
"""

from __future__ import annotations

import torch

from nmsparse.native import abi
from nmsparse.native.memory import padded_rows
from nmsparse.ops.cpu import floats, pointer
from nmsparse.ops.sparsify.compacted import CompactActivation


def linear_cpu(
    x: CompactActivation,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    token_shift: torch.Tensor | None = None,
    row_sum: torch.Tensor | None = None,
    addend: torch.Tensor | None = None,
    output_scale: torch.Tensor | None = None,
    constant: torch.Tensor | None = None,
    *,
    per_token: bool = False,
) -> torch.Tensor:
    """Return ``[T, O]``.

    Args:
        x: kept channels. An index row of stride 0 (``expand``) is one list for all.
        weight: ``[K, O]``, rows contiguous.
        bias: ``[O]`` or None.
        token_shift: ``[T]`` or None.
        row_sum: ``[O]`` or None.
        addend: ``[T, O]`` or None.
        output_scale: ``[O]`` or None.
        constant: ``[O]`` or None.
        per_token: walk every token's list by itself instead of the union.
    """
    indices = x.indices
    if indices.stride(-1) != 1 or indices.dtype != torch.int32:
        indices = indices.to(torch.int32).contiguous()
    return _gather(
        x.values,
        indices,
        weight,
        bias,
        scale=x.scale,
        token_shift=token_shift,
        row_sum=row_sum,
        addend=addend,
        output_scale=output_scale,
        constant=constant,
        per_token=per_token,
    )


def stream_k_major(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply dense tokens by a K-major weight, for few tokens.

    Args:
        x: ``[T, K]``.
        weight: ``[K, O]``, rows contiguous.
        bias: ``[O]`` or None.

    Returns:
        ``[T, O]`` in the dtype of ``x``, accumulated in float32.
    """
    return _gather(x, None, weight, bias)


def _gather(
    values: torch.Tensor,
    indices: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    scale: torch.Tensor | None = None,
    token_shift: torch.Tensor | None = None,
    row_sum: torch.Tensor | None = None,
    addend: torch.Tensor | None = None,
    output_scale: torch.Tensor | None = None,
    constant: torch.Tensor | None = None,
    per_token: bool = False,
) -> torch.Tensor:
    tokens, (channels, outputs) = values.shape[0], weight.shape
    out = torch.empty(tokens, outputs, dtype=values.dtype, device=values.device)
    if not out.numel():
        return out
    if values.stride(1) != 1:
        values = values.contiguous()
    if weight.stride(1) != 1 or weight.stride(0) < outputs:
        weight = weight.contiguous()
    # Named, so that converted copies live until the kernel returns.
    scale, token_shift, row_sum = floats(scale), floats(token_shift), floats(row_sum)
    output_scale, constant = floats(output_scale), floats(constant)
    bias = None if bias is None else bias.to(values.dtype).contiguous()
    addend = None if addend is None else addend.to(values.dtype).contiguous()
    args = abi.GatherArgs(
        values=values.data_ptr(),
        indices=pointer(indices),
        weight=weight.data_ptr(),
        out=out.data_ptr(),
        bias=pointer(bias),
        addend=pointer(addend),
        scale=pointer(scale),
        token_shift=pointer(token_shift),
        row_sum=pointer(row_sum),
        output_scale=pointer(output_scale),
        constant=pointer(constant),
        tokens=tokens,
        listed=values.shape[1],
        channels=channels,
        outputs=outputs,
        values_stride=values.stride(0),
        indices_stride=0 if indices is None else indices.stride(0),
        # torch gives a single row any stride.
        weight_stride=max(weight.stride(0), outputs),
        out_stride=outputs,
        dtype=abi.DTYPES[values.dtype],
        strategy=abi.PER_TOKEN if per_token else abi.UNION,
        threads=torch.get_num_threads(),
        padded=int(padded_rows(weight)),
    )
    abi.call(abi.kernels().nms_gather, args)
    return out
