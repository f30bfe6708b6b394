"""Booleans as bits: one bit a channel, little-endian, in 64-bit words or in bytes.

Channel j is bit ``j % 64`` of word ``j // 64``, and bit ``j % 8`` of byte ``j // 8``.
Bits at or beyond K are zero.
"""

from __future__ import annotations

import sys

import torch
from torch.nn.functional import pad

if sys.byteorder != "little":  # words and bytes are views of the same memory here
    raise RuntimeError(
        "Packed weights: this processor is big-endian. Expected a little-endian one: "
        "use dense weights (offline-prune unpack, on another machine)."
    )

WORD_BITS = 64
BYTE_BITS = 8

_WORD_BYTES = WORD_BITS // BYTE_BITS
# Eight bytes of 0 or 1, times this number: the highest byte holds them as eight bits.
_GATHER = 0x0102040810204080
# Sums of neighbouring bits, pairs and nibbles; then one multiplication adds the bytes.
_PAIRS, _NIBBLES, _BYTES = 0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F
_ONES = 0x0101010101010101


def words_of(in_features: int) -> int:
    """Return how many words hold ``in_features`` bits."""
    return -(-in_features // WORD_BITS)


def bytes_of(in_features: int) -> int:
    """Return how many bytes hold ``in_features`` bits."""
    return -(-in_features // BYTE_BITS)


def pack_keep(keep: torch.Tensor) -> torch.Tensor:
    """Return ``[O, ceil(K / 64)]`` int64 words.

    Args:
        keep: ``[O, K]`` bool.
    """
    rows, in_features = keep.shape
    if not keep.numel():
        return keep.new_zeros(rows, words_of(in_features), dtype=torch.int64)
    missing = -in_features % WORD_BITS
    eights = pad(keep, (0, missing)).contiguous().view(torch.int64)
    return _to_words(((eights * _GATHER) >> (WORD_BITS - BYTE_BITS)).to(torch.uint8))


def unpack_keep(words: torch.Tensor, in_features: int) -> torch.Tensor:
    """Return ``[O, K]`` bool.

    Args:
        words: ``[O, ceil(K / 64)]`` int64.
        in_features: K.
    """
    values = torch.arange(1 << BYTE_BITS, dtype=torch.uint8, device=words.device)
    place = torch.arange(BYTE_BITS, dtype=torch.uint8, device=words.device)
    # Row v holds the bits of byte v, as eight booleans in one word.
    table = ((values[:, None] >> place) & 1).view(torch.int64).flatten()
    eights = table.index_select(0, _to_bytes(words).flatten().int())
    keep = eights.view(torch.bool).view(len(words), words.shape[1] * WORD_BITS)
    return keep[:, :in_features]


def to_bytes(words: torch.Tensor, in_features: int) -> torch.Tensor:
    """Return ``[O, ceil(K / 8)]`` uint8, the form of a file, of ``[O, W]`` words."""
    return _to_bytes(words)[:, : bytes_of(in_features)].contiguous()


def from_bytes(packed: torch.Tensor) -> torch.Tensor:
    """Return ``[O, ceil(K / 64)]`` int64 words from ``[O, ceil(K / 8)]`` uint8."""
    return _to_words(pad(packed, (0, -packed.shape[1] % _WORD_BYTES)))


def count_bits(words: torch.Tensor) -> torch.Tensor:
    """Return the number of set bits of each row, ``[O]`` int64.

    Args:
        words: ``[O, W]`` int64.
    """
    # Arithmetic shifts copy the sign; every sum is masked, which removes the copies.
    x = words - ((words >> 1) & _PAIRS)
    x = (x & _NIBBLES) + ((x >> 2) & _NIBBLES)
    x = (x + (x >> 4)) & _BYTES
    return ((x * _ONES) >> (WORD_BITS - BYTE_BITS)).sum(-1)


def tail_is_zero(words: torch.Tensor, in_features: int) -> bool:
    """Return whether all bits at or beyond ``in_features`` are zero.

    Args:
        words: ``[O, ceil(K / 64)]`` int64.
        in_features: K.
    """
    used = in_features % WORD_BITS
    return used == 0 or not bool((words[:, -1] & (-1 << used)).any())


def _to_words(packed: torch.Tensor) -> torch.Tensor:
    """View ``[O, 8 * W]`` uint8 as ``[O, W]`` int64."""
    rows, size = packed.shape
    groups = packed.view(rows, size // _WORD_BYTES, _WORD_BYTES)
    return groups.view(torch.int64).squeeze(-1)


def _to_bytes(words: torch.Tensor) -> torch.Tensor:
    """View ``[O, W]`` int64 as ``[O, 8 * W]`` uint8."""
    rows, size = words.shape
    groups = words.contiguous().unsqueeze(-1).view(torch.uint8)
    return groups.view(rows, size * _WORD_BYTES)
