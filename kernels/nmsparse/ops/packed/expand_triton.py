"""Pieces of a packed weight, expanded in registers: shared by the packed kernels.

The bits of a piece are read as bytes of 8 channels; from them follow the places of the
stored values, which are loaded there and nowhere else. A piece is then dense, zeros
included, so everything that is not finite behaves as in the reference: a dropped weight
is a zero that meets x, and zero times infinity is NaN.
"""

# Kernel arguments are typed by Triton.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_bits(row_bits, row_exists, first, used, BYTES: tl.constexpr) -> tl.tensor:
    """Return bytes ``first`` to ``first + BYTES`` of rows, ``[BLOCK_O, BYTES]`` int32.

    Zeros beyond the last byte of a row.
    """
    place = first + tl.arange(0, BYTES)
    exists = row_exists[:, None] & (place < used)[None, :]
    found = tl.load(row_bits[:, None] + place[None, :], mask=exists, other=0)
    return found.to(tl.int32)


@triton.jit
def _rank(byte):
    """Return, for bytes of bits, a nibble for each bit, and how many bits are set.

    Nibble i holds how many bits below bit i are set, at most 7, and as its highest bit
    the bit itself.
    """
    spread = (byte | (byte << 12)) & 0x000F000F
    spread = (spread | (spread << 6)) & 0x03030303
    spread = (spread | (spread << 3)) & 0x11111111  # nibble i is bit i
    below = spread * 0x11111110  # nibble i is the sum of the nibbles before it
    return below | (spread << 3), (below >> 28) + (byte >> 7)


@triton.jit
def load_dense(
    row_values,
    here,
    running,
    first,
    HAS_OFFSETS: tl.constexpr,
    KEPT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BYTES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return a piece of the dense weight, ``[BLOCK_O, BYTES, 8]``, and values so far.

    Args (tensors): where rows of values start, the piece's bits, the values of these
    rows before the piece (``[BLOCK_O]`` int32), and the piece's first byte.
    """
    # Whether the values before a piece, or even before a byte, follow from its place.
    BY_PIECE: tl.constexpr = (not HAS_OFFSETS) and (BYTES * 8) % GROUP == 0
    BY_BYTE: tl.constexpr = BY_PIECE and 8 % GROUP == 0
    ranks, counts = _rank(here)
    if BY_BYTE:
        place = first + tl.arange(0, BYTES)
        before = tl.broadcast_to((place * (8 // GROUP * KEPT))[None, :], counts.shape)
    else:
        if BY_PIECE:
            running = tl.full([BLOCK_O], first * 8 // GROUP * KEPT, tl.int32)
        before = running[:, None] + tl.cumsum(counts, 1) - counts
        running += tl.sum(counts, 1)
    nibble = ranks[:, :, None] >> (4 * tl.arange(0, 8)[None, None, :])
    at = row_values[:, None, None] + (before[:, :, None] + (nibble & 7))
    return tl.load(at, mask=(nibble & 8) != 0, other=0), running


@triton.jit
def dense_product(
    x,
    row_bits,
    row_values,
    row_exists,
    in_features,
    HAS_OFFSETS: tl.constexpr,
    KEPT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BYTES: tl.constexpr,
) -> tl.tensor:
    """Return the product of one token with rows, ``[BLOCK_O]`` float32."""
    used = (in_features + 7) // 8
    # Summed at the end: a sum across threads costs more than a product.
    acc = tl.zeros([BLOCK_O, BYTES, 8], tl.float32)
    running = tl.zeros([BLOCK_O], tl.int32)
    coming = load_bits(row_bits, row_exists, 0, used, BYTES)
    for first in range(0, used, BYTES):
        here = coming
        # Asked for now, needed in the next step: one wait for memory a step, not two.
        coming = load_bits(row_bits, row_exists, first + BYTES, used, BYTES)
        weight, running = load_dense(
            row_values, here, running, first, HAS_OFFSETS, KEPT, GROUP, BLOCK_O, BYTES
        )
        place = first + tl.arange(0, BYTES)
        channel = place[:, None] * 8 + tl.arange(0, 8)[None, :]
        mine = tl.load(x + channel, mask=channel < in_features, other=0)
        acc += weight.to(tl.float32) * mine.to(tl.float32)[None, :, :]
    return tl.sum(tl.sum(acc, 2), 1)


@triton.jit
def load_bias(
    bias, rows, row_exists, HAS_BIAS: tl.constexpr, BLOCK_O: tl.constexpr
) -> tl.tensor:
    """Return the bias of rows, ``[BLOCK_O]`` float32; zeros without one."""
    own = tl.zeros([BLOCK_O], tl.float32)
    if HAS_BIAS:
        own = tl.load(bias + rows, mask=row_exists, other=0).to(tl.float32)
    return own
