"""Bits of channels: the layout by hand, and against plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse import bitmask

WIDTHS = [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 200]


def random_keep(rows, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, width, generator=generator) < 0.5


def test_layout_by_hand():
    keep = torch.zeros(1, 70, dtype=torch.bool)
    keep[0, [0, 3, 9, 63, 64, 69]] = True
    words = bitmask.pack_keep(keep)
    first = (1 << 0) + (1 << 3) + (1 << 9) + (1 << 63)
    assert words.tolist() == [[first - (1 << 64), (1 << 0) + (1 << 5)]]
    found = bitmask.to_bytes(words, 70)
    assert found.tolist() == [[0b1001, 0b10, 0, 0, 0, 0, 0, 0b10000000, 0b100001]]


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("width", WIDTHS)
def test_round_trips_and_counts(rows, width):
    keep = random_keep(rows, width)
    words = bitmask.pack_keep(keep)
    assert words.dtype is torch.int64
    assert words.shape == (rows, bitmask.words_of(width))
    assert torch.equal(bitmask.unpack_keep(words, width), keep)
    packed = bitmask.to_bytes(words, width)
    assert packed.dtype is torch.uint8
    assert packed.shape == (rows, bitmask.bytes_of(width))
    assert torch.equal(bitmask.from_bytes(packed), words)
    assert torch.equal(bitmask.count_bits(words), keep.sum(1))
    assert bitmask.tail_is_zero(words, width)


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=6))
@settings(deadline=None)
def test_counts_like_python(numbers):
    words = torch.tensor([numbers])
    expected = sum((number & ((1 << 64) - 1)).bit_count() for number in numbers)
    assert bitmask.count_bits(words).tolist() == [expected]


@pytest.mark.parametrize("width", [1, 8, 63, 65, 127])
def test_every_tail_bit_is_seen(width):
    words = torch.zeros(2, bitmask.words_of(width), dtype=torch.int64)
    assert bitmask.tail_is_zero(words, width)
    for bit in range(width % 64, 64):
        dirty = words.clone()
        dirty[1, -1] = (1 << bit) if bit < 63 else -(1 << 63)
        assert not bitmask.tail_is_zero(dirty, width)


def test_transposed_input():
    keep = random_keep(70, 5).t()
    words = bitmask.pack_keep(keep)
    assert torch.equal(bitmask.unpack_keep(words, 70), keep)


def test_bytes_of_a_file_are_copied():
    """A file may be unmapped or its buffer used again."""
    packed = bitmask.to_bytes(bitmask.pack_keep(random_keep(3, 64)), 64)
    words = bitmask.from_bytes(packed)
    before = words.clone()
    packed.zero_()
    assert torch.equal(words, before)
