"""``PackedWeight``: what is stored, exact round trips, and the check of its parts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse import NMPattern, Unstructured, packed_tensors, sparsify
from nmsparse.packed import PADDING, PackedWeight

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SHAPES = [(0, 0), (0, 8), (3, 0), (1, 1), (3, 1), (5, 63), (4, 64), (3, 65), (7, 200)]


def random(*shape, dtype=torch.bfloat16, density=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(dtype)
    return torch.where(torch.rand(shape, generator=generator) < density, weight, 0)


def same_bits(a, b):
    integer = torch.int32 if a.element_size() == 4 else torch.int16
    return torch.equal(a.view(integer), b.view(integer))


def test_by_hand():
    weight = torch.zeros(2, 66)
    weight[0, 1], weight[0, 65], weight[1, 0] = 2.0, -3.0, 4.0
    found = PackedWeight.pack(weight)
    assert found.bits.tolist() == [[0b10, 0b10], [0b1, 0]]
    assert found.values.tolist() == [2.0, -3.0, 4.0] + [0.0] * 64
    assert found.offsets.tolist() == [0, 2, 3]
    assert (found.shape, found.dtype, found.stored) == ((2, 66), torch.float32, 3)
    assert found.density == 3 / 132
    assert found.nbytes == 4 * 8 + (3 + 64) * 4 + 3 * 8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_round_trip(shape, dtype, density):
    weight = random(*shape, dtype=dtype, density=density)
    found = PackedWeight.pack(weight)
    found.check()
    assert found.shape == shape
    assert found.stored == weight.count_nonzero()
    assert same_bits(found.unpack(), weight)


@given(st.integers(1, 6), st.integers(1, 150), st.floats(0, 1), st.integers(0, 1 << 16))
@settings(deadline=None, max_examples=50)
def test_any_small_weight(rows, columns, density, seed):
    weight = random(rows, columns, density=density, seed=seed)
    found = PackedWeight.pack(weight)
    found.check()
    assert same_bits(found.unpack(), weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_zeros_are_dropped(dtype):
    tiny = torch.finfo(dtype).smallest_normal
    weight = torch.tensor(
        [[0.0, -0.0, math.nan, math.inf, -math.inf, tiny / 4, -tiny / 4, 1.0]],
        dtype=dtype,
    )
    found = PackedWeight.pack(weight)
    assert found.bits.tolist() == [[0b11111100]]
    expected = weight.clone()
    expected[0, 1] = 0.0  # -0.0 comes back as +0.0
    assert same_bits(found.unpack(), expected)


def test_subnormals_are_stored_where_the_processor_ignores_them():
    weight = torch.tensor([[1e-40, 0.0]])
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        found = PackedWeight.pack(weight)
    finally:
        torch.set_flush_denormal(False)
    assert found.bits.tolist() == [[1]]
    assert same_bits(found.unpack(), weight)


def test_rows_of_an_nm_weight_are_equally_long():
    weight = sparsify(random(6, 128, density=1.0), NMPattern(2, 4))
    assert PackedWeight.pack(weight).offsets.diff().unique().tolist() == [64]


@pytest.mark.parametrize(
    ("pattern", "share"), [(NMPattern(2, 4), 0.5625), (Unstructured(0.7), 0.3625)]
)
def test_size_of_a_large_weight(pattern, share):
    weight = sparsify(random(512, 2560, density=1.0), pattern)
    found = PackedWeight.pack(weight)
    assert found.nbytes / weight.nbytes == pytest.approx(share, abs=0.003)


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_blocks_do_not_show(monkeypatch, block):
    weight = random(9, 70)
    expected = PackedWeight.pack(weight)
    monkeypatch.setattr(packed_tensors, "_BLOCK", block)
    found = PackedWeight.pack(weight)
    assert torch.equal(found.bits, expected.bits)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.unpack(), weight)


def test_views_are_packed_as_they_look():
    weight = random(70, 9)
    assert torch.equal(PackedWeight.pack(weight.t()).unpack(), weight.t())
    assert torch.equal(PackedWeight.pack(weight[::2, 1:8]).unpack(), weight[::2, 1:8])


def test_input_is_not_modified():
    weight = random(5, 70)
    before = weight.clone()
    PackedWeight.pack(weight).unpack().fill_(7.0)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (1, 4), (2, 2), (5, 5)])
def test_rows(start, stop):
    weight = random(5, 70)
    found = PackedWeight.pack(weight).rows(start, stop)
    found.check()
    assert torch.equal(found.unpack(), weight[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6)])
def test_rows_out_of_range(start, stop):
    with pytest.raises(ValueError, match=r"rows .* of a packed weight with 5 rows"):
        PackedWeight.pack(random(5, 8)).rows(start, stop)


@pytest.mark.parametrize("shape", [(), (4,), (2, 2, 2)], ids=str)
def test_pack_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"has shape .*\. Expected \[O, K\]"):
        PackedWeight.pack(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn])
def test_pack_refuses_other_dtypes(dtype):
    with pytest.raises(TypeError, match="Expected float16, bfloat16 or float32"):
        PackedWeight.pack(torch.zeros(2, 2).to(dtype))


def damaged(part, change):
    good = PackedWeight.pack(random(3, 70))
    tensor = getattr(good, part).clone()
    return dataclasses.replace(good, **{part: change(tensor)})


def edit(index, value):
    def change(tensor):
        tensor[index] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("bits", lambda t: t.int(), r"bits is torch\.int32"),
        ("bits", lambda t: t[:, :1].contiguous(), r"bits .*Expected .*\(3, 2\)"),
        ("bits", lambda t: t.flatten(), "bits is"),
        ("bits", lambda t: t.t().contiguous().t(), "not contiguous"),
        ("bits", edit((1, 1), 1 << 20), "bits at or beyond in_features are set"),
        ("bits", edit((1, 0), 0), "offsets disagree"),
        ("offsets", lambda t: t[:-1], r"offsets .*Expected .*\(4,\)"),
        ("offsets", lambda t: t.int(), "offsets is"),
        ("offsets", edit(0, 1), "offsets disagree"),
        ("values", lambda t: t.double(), "values is"),
        ("values", lambda t: t[None], "values is"),
        ("values", lambda t: t[: PADDING - 1], "values is"),
        ("values", lambda t: t[1:].contiguous(), "values are stored, but"),
        ("values", edit(-1, 1.0), "the last 64 values are not zero"),
    ],
)
def test_check_names_what_is_wrong(part, change, message):
    with pytest.raises(ValueError, match=message):
        damaged(part, change).check()
