"""The peer of the GPU benchmark: a threshold, masked rows, and float32 atomics.

Written from what TEAL's paper (arXiv 2408.14690) describes, for a comparison on the
same machine; it is no copy of its code. One program owns one tile of ``[K, O]``. It
compares its piece of the activation with a threshold, loads only rows above it, and
adds its partial sum to the output by an atomic. So the output has to be zeroed first,
by a launch of its own, and sums arrive in any order: results vary from run to run.

Kinder to the peer than its original: the sum is float32, and several tokens are
allowed, each with rows of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class PeerTiles(NamedTuple):
    """Sizes of one program."""

    block_k: int
    block_o: int
    warps: int


def candidates() -> list[PeerTiles]:
    """Return the tiles to try; the first is a fair guess."""
    return [
        PeerTiles(block_k, block_o, warps)
        for block_k in (32, 16, 64, 128)
        for block_o, warps in ((128, 4), (256, 4), (64, 2), (512, 4))
    ]


@triton.jit
def _masked_rows(
    x_ptr,
    weight_ptr,
    out_ptr,
    threshold,
    in_features,
    out_features,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    token = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    o = tl.program_id(0).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    x = tl.load(x_ptr + token * in_features + k, mask=k < in_features, other=0.0)
    wide = x.to(tl.float32)
    stays = tl.abs(wide) > threshold  # false beyond K, where 0 was loaded
    inside = o < out_features
    weight = tl.load(
        weight_ptr + k[:, None] * out_features + o[None, :],
        mask=stays[:, None] & inside[None, :],
        other=0.0,
        eviction_policy="evict_first",
    )
    partial = tl.sum(weight.to(tl.float32) * wide[:, None], axis=0)
    tl.atomic_add(
        out_ptr + token * out_features + o, partial, mask=inside, sem="relaxed"
    )


def masked_rows(
    x: torch.Tensor, weight: torch.Tensor, threshold: float, tiles: PeerTiles
) -> torch.Tensor:
    """Multiply what is above a threshold by rows of a weight.

    Args:
        x: ``[T, K]``, contiguous.
        weight: ``[K, O]``, contiguous.
        threshold: channels whose absolute value is larger stay; not negative.
        tiles: sizes of a program.

    Returns:
        ``[T, O]`` float32.

    Raises:
        ValueError: if a shape, a layout or the threshold is not what is expected.
    """
    tokens, in_features = x.shape
    out_features = weight.shape[1]
    if weight.shape[0] != in_features or threshold < 0:
        raise ValueError(
            f"masked_rows: weight {tuple(weight.shape)}, threshold {threshold}. "
            f"Expected [{in_features}, O] and 0 or more."
        )
    if not (x.is_contiguous() and weight.is_contiguous()):
        raise ValueError("masked_rows: expected contiguous x and weight.")
    out = torch.zeros(tokens, out_features, dtype=torch.float32, device=x.device)
    grid = (
        triton.cdiv(out_features, tiles.block_o),
        triton.cdiv(in_features, tiles.block_k),
        tokens,
    )
    _masked_rows[grid](
        *(x, weight, out, threshold, in_features, out_features),
        BLOCK_K=tiles.block_k,
        BLOCK_O=tiles.block_o,
        num_warps=tiles.warps,
    )
    return out
