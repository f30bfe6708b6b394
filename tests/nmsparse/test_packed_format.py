"""Packed tensors of a file: exact round trips, and hostile ones are refused by name."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from nmsparse.packed import DTYPES, PackedWeight
from nmsparse.packed_format import decode, encode
from nmsparse.packed_manifest import PackedFormatError

FUZZ = settings(deadline=None, max_examples=150)
dimensions = st.tuples(st.integers(0, 5), st.integers(0, 80))


def weight_of(shape, seed=0, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(dtype)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, weight, 0)


def read(bitmask, values, shape):
    """Decode; whatever is accepted must be a sound weight of the right shape."""
    found = decode("m", bitmask, values, shape=shape)
    found.check()
    dense = found.unpack()
    assert tuple(dense.shape) == shape
    assert dense.dtype is values.dtype
    return dense


def test_layout_by_hand():
    weight = torch.zeros(2, 9)
    weight[0, 0], weight[0, 8], weight[1, 3] = 1.0, 2.0, 3.0
    bitmask, values = encode(PackedWeight.pack(weight))
    assert bitmask.dtype is torch.uint8
    assert bitmask.tolist() == [[0b1, 0b1], [0b1000, 0]]
    assert values.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 64), (5, 70), (4, 129)], ids=str)
def test_round_trip(shape, dtype):
    weight = weight_of(shape, dtype=dtype)
    bitmask, values = encode(PackedWeight.pack(weight))
    assert bitmask.shape == (shape[0], -(-shape[1] // 8))
    assert torch.equal(read(bitmask, values, shape), weight)


def test_nan_and_infinity_are_values():
    weight = torch.tensor([[torch.nan, 0.0, torch.inf]])
    found = read(*encode(PackedWeight.pack(weight)), (1, 3))
    assert torch.equal(found.nan_to_num(), weight.nan_to_num())


def test_the_result_shares_no_memory_with_the_file():
    weight = weight_of((3, 64))
    bitmask, values = (t.clone() for t in encode(PackedWeight.pack(weight)))
    found = decode("m", bitmask, values, shape=(3, 64))
    bitmask.zero_(), values.zero_()
    assert torch.equal(found.unpack(), weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, v: (b.char(), v), r"m\.weight_bitmask is torch\.int8 \[3, 9\]"),
        (
            lambda b, v: (b[:2], v),
            r"m\.weight_bitmask .*\[2, 9\]\. Expected .*\[3, 9\]",
        ),
        (lambda b, v: (b[:, :8], v), r"m\.weight_bitmask .* for a weight of \[3, 70\]"),
        (lambda b, v: (b.flatten(), v), r"m\.weight_bitmask"),
        (lambda b, v: (b, v.double()), r"m\.weight_values is torch\.float64"),
        (lambda b, v: (b, v[None]), r"m\.weight_values"),
        (
            lambda b, v: (b, v[1:]),
            r"m\.weight_values holds \d+ values, but m\.weight_b",
        ),
        (
            lambda b, v: (b | 128, v),
            r"m\.weight_bitmask has bits set beyond channel 69",
        ),
        (lambda b, v: (b * 0, v), r"m\.weight_values holds"),
    ],
)
def test_errors_name_the_tensor(change, message):
    bitmask, values = encode(PackedWeight.pack(weight_of((3, 70))))
    with pytest.raises(PackedFormatError, match=message):
        decode("m", *change(bitmask, values), shape=(3, 70))


@given(dimensions, st.binary(max_size=64), st.integers(0, 200), st.sampled_from(DTYPES))
@FUZZ
def test_random_bytes_never_crash(shape, data, stored, dtype):
    size = shape[0] * -(-shape[1] // 8)
    raw = torch.frombuffer(bytearray(data + bytes(size + 1)), dtype=torch.uint8)
    bitmask = raw[:size].view(shape[0], -1) if shape[0] else raw[:0].view(0, size)
    with contextlib.suppress(PackedFormatError):
        read(bitmask, torch.ones(stored, dtype=dtype), shape)


@given(dimensions, st.integers(0, 99), st.data())
@FUZZ
def test_mutated_pairs_are_refused_or_still_sound(shape, seed, data):
    weight = weight_of(shape, seed)
    bitmask, values = encode(PackedWeight.pack(weight))
    bitmask = bitmask.clone()
    flips = data.draw(st.lists(st.integers(0, max(0, bitmask.numel() * 8 - 1))))
    if bitmask.numel():
        for flip in flips:
            bitmask.view(-1)[flip // 8] ^= 1 << flip % 8
    values = values[: data.draw(st.integers(0, values.numel()))]
    try:
        found = read(bitmask, values, shape)
    except PackedFormatError:
        return
    if not flips:
        assert torch.equal(found, weight)


@given(st.integers(0, 99), st.data())
@FUZZ
def test_damaged_files_are_refused_or_still_sound(seed, data):
    """Truncated and bit-flipped safetensors: its error, ours, or a sound weight."""
    shape = (4, 70)
    bitmask, values = encode(PackedWeight.pack(weight_of(shape, seed)))
    content = bytearray(save({"m.weight_bitmask": bitmask, "m.weight_values": values}))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        flip = data.draw(st.integers(0, len(content) * 8 - 1))
        content[flip // 8] ^= 1 << flip % 8
    try:
        tensors = load(bytes(content))
        read(tensors["m.weight_bitmask"], tensors["m.weight_values"], shape)
    except (SafetensorError, PackedFormatError, KeyError):
        pass
