"""``packed_linear`` on a GPU, and the kernel of every bitmask-packed weight.

A program owns a few rows and walks K in pieces, each expanded in registers
(expand_triton.py). One token is multiplied and added there; several are a product of
matrices on tensor cores, padded to 16.
"""

# Kernel arguments are typed by Triton.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nmsparse.ops.packed.expand_triton import (
    dense_product,
    load_bias,
    load_bits,
    load_dense,
)
from nmsparse.ops.packed.limits import MAX_TOKENS
from nmsparse.ops.packed.tiles import PackedTiles, default_tiles, processors_of
from nmsparse.packed import PackedWeight


def packed_linear_triton(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None,
    *,
    tiles: PackedTiles | None = None,
) -> torch.Tensor:
    """Return ``[T, O]`` for ``x`` (``[T, K]``), T at most 16.

    Args:
        x: ``[T, K]`` in the dtype of the weight, any strides.
        weight: ``[O, K]``, packed, on the device of ``x``.
        bias: ``[O]`` of any float dtype, or None.
        tiles: shape of a program; None to choose it.

    Raises:
        ValueError: for more tokens, or tiles that do not fit them.
    """
    return multiply_stored(
        x, weight.bits, weight.values, bias, offsets=weight.offsets, tiles=tiles
    )


def multiply_stored(
    x: torch.Tensor,
    bits: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    offsets: torch.Tensor | None = None,
    kept: int = 1,
    group: int = 1,
    tiles: PackedTiles | None = None,
) -> torch.Tensor:
    """Launch the kernel for rows of any length, or of exactly N values in M channels.

    Args:
        x: ``[T, K]``.
        bits: ``[O, ceil(K / 64)]`` int64, contiguous.
        values: row after row, contiguous, in the dtype of ``x``.
        bias: ``[O]`` or None.
        offsets: ``[O + 1]`` int64, starts of rows; None if each group of M channels
            stores exactly N values.
        kept: N; without ``offsets``.
        group: M; without ``offsets``.
        tiles: shape of a program; None to choose it.

    Returns:
        ``[T, O]`` in the dtype of ``x``, accumulated in float32.

    Raises:
        ValueError: for more than 16 tokens, or tiles that do not fit them.
    """
    (tokens, in_features), out_features = x.shape, bits.shape[0]
    if tokens > MAX_TOKENS:
        raise ValueError(
            f"packed_linear_triton: x has {tokens} tokens. Expected at most "
            f"{MAX_TOKENS}: multiply more with the dense weight."
        )
    out = torch.empty(tokens, out_features, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    if tiles is None:
        processors = processors_of(x.device)
        tiles = default_tiles(tokens, out_features, in_features, processors)
    if tokens > 1 and tiles.block_o < 16:
        raise ValueError(
            f"packed_linear_triton: block_o is {tiles.block_o} for {tokens} tokens. "
            "Expected at least 16 for more than one token."
        )
    if x.stride(1) != 1:
        x = x.contiguous()
    grid = (triton.cdiv(out_features, tiles.block_o),)
    _stored_kernel[grid](
        x,
        bits.view(torch.uint8),
        values,
        bits if offsets is None else offsets,
        values if bias is None else bias,
        out,
        tokens,
        in_features,
        out_features,
        x.stride(0),
        bits.shape[1] * 8,
        in_features // group * kept,
        HAS_BIAS=bias is not None,
        HAS_OFFSETS=offsets is not None,
        KEPT=kept,
        GROUP=group,
        ONE_TOKEN=tokens == 1,
        # The interpreter multiplies the bits of bfloat16 as integers. Float32 holds the
        # same numbers, and their products, exactly.
        WIDE=not x.is_cuda,
        TOKENS=MAX_TOKENS,
        BLOCK_O=tiles.block_o,
        BYTES=tiles.block_k // 8,
        num_warps=tiles.warps,
    )
    return out


@triton.jit
def _stored_kernel(
    x,
    bits,
    values,
    offsets,
    bias,
    out,
    tokens,
    in_features,
    out_features,
    x_stride,
    bits_stride,
    values_stride,
    HAS_BIAS: tl.constexpr,
    HAS_OFFSETS: tl.constexpr,
    KEPT: tl.constexpr,
    GROUP: tl.constexpr,
    ONE_TOKEN: tl.constexpr,
    WIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BYTES: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    row_exists = rows < out_features
    if HAS_OFFSETS:
        row_values = values + tl.load(offsets + rows, mask=row_exists, other=0)
    else:
        row_values = values + rows * values_stride
    row_bits = bits + rows * bits_stride
    own = load_bias(bias, rows, row_exists, HAS_BIAS, BLOCK_O)
    if ONE_TOKEN:
        result = own + dense_product(
            x,
            row_bits,
            row_values,
            row_exists,
            in_features,
            HAS_OFFSETS,
            KEPT,
            GROUP,
            BLOCK_O,
            BYTES,
        )
        tl.store(out + rows, result.to(out.dtype.element_ty), mask=row_exists)
    else:
        used = (in_features + 7) // 8
        token = tl.arange(0, TOKENS)
        acc = tl.zeros([TOKENS, BLOCK_O], tl.float32)
        running = tl.zeros([BLOCK_O], tl.int32)
        coming = load_bits(row_bits, row_exists, 0, used, BYTES)
        for first in range(0, used, BYTES):
            here = coming
            coming = load_bits(row_bits, row_exists, first + BYTES, used, BYTES)
            weight, running = load_dense(
                row_values,
                here,
                running,
                first,
                HAS_OFFSETS,
                KEPT,
                GROUP,
                BLOCK_O,
                BYTES,
            )
            channel = first * 8 + tl.arange(0, BYTES * 8)
            exists = (token < tokens)[:, None] & (channel < in_features)[None, :]
            mine_at = token.to(tl.int64)[:, None] * x_stride + channel[None, :]
            mine = tl.load(x + mine_at, mask=exists, other=0)
            dense = tl.reshape(weight, [BLOCK_O, BYTES * 8])
            if WIDE:
                mine, dense = mine.to(tl.float32), dense.to(tl.float32)
            acc = tl.dot(mine, tl.trans(dense), acc, input_precision="ieee")
        result = (acc + own[None, :]).to(out.dtype.element_ty)
        to = out + token.to(tl.int64)[:, None] * out_features + rows[None, :]
        tl.store(to, result, mask=(token < tokens)[:, None] & row_exists[None, :])
