"""``sparsify`` and ``compact``: hand-computed, against the oracle, and at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import sparsify_row

from nmsparse.keep import verify
from nmsparse.ops.sparsify import CompactActivation, compact, sparsify
from nmsparse.pattern import NMPattern, Unstructured, parse_pattern

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16}
# 1:4 and 6:8 tell kept and pruned apart; 3:7 and 1:1 are odd.
PATTERNS = ["1:4", "2:4", "6:8", "8:16", "16:32", "3:7", "1:1", "50%", "70%"]


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bits(x):
    """Return the bit patterns: -0.0 differs from 0.0, and NaN equals itself."""
    return x.contiguous().view(BITS.get(x.dtype, torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hand_computed(dtype):
    x = torch.tensor([[4.0, -3.0, 1.0, 2.0], [0.5, 3.0, -1.0, 2.0]], dtype=dtype)
    y = sparsify(x, NMPattern(2, 4))
    assert y.tolist() == [[4.0, -3.0, 0.0, 0.0], [0.0, 3.0, 0.0, 2.0]]
    assert y.dtype is dtype


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_oracle(text, dtype):
    pattern = parse_pattern(text)
    # Coarse values, so that ties occur in every group.
    x = (random(6, 7 * 32, seed=1) * 2).round().div(2).to(dtype)
    kept, group = pattern.group(x.shape[1])
    expected = [sparsify_row(row, kept, group) for row in x.tolist()]
    y = sparsify(x, pattern)
    assert y.tolist() == expected
    assert verify(y, pattern)


@st.composite
def cases(draw):
    m = draw(st.integers(1, 12))
    n = draw(st.integers(1, m))
    tokens = draw(st.integers(0, 3))
    values = st.one_of(
        st.floats(width=16),
        st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]),
    )
    rows = draw(
        st.lists(
            st.lists(values, min_size=2 * m, max_size=2 * m),
            min_size=tokens,
            max_size=tokens,
        )
    )
    dtype = draw(st.sampled_from(DTYPES))
    return torch.tensor(rows).to(dtype).view(tokens, 2 * m), NMPattern(n, m)


@given(cases())
@settings(deadline=None)
def test_values_are_kept_to_the_bit_or_become_zero(case):
    x, pattern = case
    before = x.clone()
    y = sparsify(x, pattern)
    assert torch.equal(bits(x), bits(before)), "the input was modified"
    assert y.shape == x.shape
    assert y.dtype is x.dtype
    assert ((bits(y) == bits(x)) | (bits(y) == 0)).all()
    assert torch.equal(bits(sparsify(y, pattern)), bits(y)), "not idempotent"


@given(cases())
@settings(deadline=None)
def test_compact_is_the_kept_channels_in_order(case):
    x, pattern = case
    packed = compact(x, pattern)
    kept = x.shape[1] // pattern.m * pattern.n
    assert packed.values.shape == packed.indices.shape == (x.shape[0], kept)
    assert packed.indices.dtype is torch.int32
    assert packed.in_features == x.shape[1]
    assert (packed.indices.diff(dim=1) > 0).all()
    assert torch.equal(bits(packed.values), bits(x.gather(1, packed.indices.long())))
    assert torch.equal(bits(packed.to_dense()), bits(sparsify(x, pattern)))


@pytest.mark.parametrize("text", PATTERNS)
def test_compact_and_sparsify_agree(text):
    x = random(5, 7 * 32, dtype=torch.bfloat16, seed=2)
    dense = compact(x, parse_pattern(text)).to_dense()
    assert torch.equal(dense, sparsify(x, parse_pattern(text)))


def test_compact_by_hand():
    x = torch.tensor([[4.0, -3.0, 1.0, 2.0], [0.5, 3.0, -1.0, 2.0]])
    packed = compact(x, NMPattern(2, 4))
    assert packed.values.tolist() == [[4.0, -3.0], [3.0, 2.0]]
    assert packed.indices.tolist() == [[0, 1], [1, 3]]


def test_to_dense_keeps_the_dtype_and_does_not_alias():
    packed = CompactActivation(
        torch.tensor([[1.0]], dtype=torch.bfloat16),
        torch.tensor([[2]], dtype=torch.int32),
        4,
    )
    dense = packed.to_dense()
    assert dense.dtype is torch.bfloat16
    assert dense.tolist() == [[0.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize("pattern", [NMPattern(4, 4), Unstructured(0.0)], ids=str)
def test_dense_pattern_copies(pattern):
    x = torch.tensor([[1.0, -0.0, math.nan, math.inf]])
    y = sparsify(x, pattern)
    assert torch.equal(bits(y), bits(x))
    assert y.data_ptr() != x.data_ptr()
    assert torch.equal(bits(compact(x, pattern).values), bits(x))


def test_result_does_not_alias_the_input():
    x = random(4, 16)
    sparsify(x, NMPattern(2, 4)).fill_(7.0)
    assert torch.equal(x, random(4, 16))


@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (16,), (2, 3, 16), (1, 1, 16)])
def test_shapes(shape):
    x = random(*shape)
    y = sparsify(x, NMPattern(2, 4))
    assert y.shape == x.shape
    expected = sparsify(x.reshape(-1, 16), NMPattern(2, 4))
    assert torch.equal(y.reshape(-1, 16), expected)
    assert y.count_nonzero() == x.numel() // 2


def test_zero_tokens_compact():
    packed = compact(torch.empty(0, 16), NMPattern(2, 4))
    assert packed.values.shape == packed.indices.shape == (0, 8)
    assert packed.to_dense().shape == (0, 16)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t()[:, :32],
        lambda x: x[:, ::2],
        lambda x: x[::3, :32],
        lambda x: x[:1].expand(5, -1),
        lambda x: x.view(4, 16, 64).transpose(0, 1),
    ],
    ids=["transposed", "strided", "rows", "expanded", "3-D"],
)
def test_non_contiguous(view):
    x = view(random(64, 64, seed=3))
    expected = sparsify(x.contiguous(), NMPattern(2, 4))
    assert torch.equal(sparsify(x, NMPattern(2, 4)), expected)
    if x.dim() == 2:
        assert torch.equal(compact(x, NMPattern(2, 4)).to_dense(), expected)


def test_infinity_is_kept_and_dropped_values_next_to_it_are_zero():
    x = torch.tensor([[math.inf, 1.0, -math.inf, 2.0]])
    assert sparsify(x, NMPattern(2, 4)).tolist() == [[math.inf, 0.0, -math.inf, 0.0]]
    # Three infinities compete for two places; the dropped one is 0, not NaN.
    x = torch.tensor([[1.0, math.inf, math.inf, math.inf]])
    assert sparsify(x, NMPattern(2, 4)).tolist() == [[0.0, math.inf, math.inf, 0.0]]


def test_nan_stays_visible():
    x = torch.tensor([[9.0, 8.0, 7.0, math.nan], [1.0, 2.0, 3.0, 4.0]])
    y = sparsify(x, NMPattern(1, 4))
    assert y[0].isnan().tolist() == [False, False, False, True]
    assert y[1].tolist() == [0.0, 0.0, 0.0, 4.0]
    # A NaN that loses to two others becomes an exact zero.
    y = sparsify(torch.full((1, 4), math.nan), NMPattern(2, 4))
    assert y.isnan().tolist() == [[True, True, False, False]]
    assert y[0, 2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.99])
def test_unstructured_keeps_a_share_of_every_row(share):
    x = random(9, 130, seed=4)
    y = sparsify(x, Unstructured(share))
    assert (y.count_nonzero(dim=1) == round(130 * (1 - share))).all()
    smallest_kept = y.abs().masked_fill(y == 0, math.inf).amin(1)
    largest_dropped = x.abs().masked_fill(y != 0, 0.0).amax(1)
    assert (smallest_kept >= largest_dropped).all()


def test_a_token_does_not_depend_on_its_batch():
    x = random(16, 64, seed=5)
    together = sparsify(x, NMPattern(8, 16))
    alone = torch.cat([sparsify(row[None], NMPattern(8, 16)) for row in x])
    assert torch.equal(together, alone)


def test_sign_and_powers_of_two_pass_through():
    x = random(8, 64, dtype=torch.bfloat16, seed=6)
    y = sparsify(x, NMPattern(2, 4))
    assert torch.equal(sparsify(-x, NMPattern(2, 4)), -y)
    assert torch.equal(sparsify(x * 4, NMPattern(2, 4)), y * 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2:4", 0.868), ("4:8", 0.897), ("8:16", 0.912), ("16:32", 0.920)],
)
def test_kept_energy_of_gaussian_activations(text, expected):
    x = random(4096, 512, seed=7)
    kept = sparsify(x, parse_pattern(text)).square().sum() / x.square().sum()
    assert abs(kept.item() - expected) < 0.003


def test_no_element_is_left_unwritten(poisoned_memory):
    x = random(5, 64, seed=8)
    expected = [sparsify_row(row, 2, 4) for row in x.tolist()]
    assert sparsify(x, NMPattern(2, 4)).tolist() == expected
    assert compact(x, NMPattern(2, 4)).to_dense().tolist() == expected


@pytest.mark.parametrize("op", [sparsify, compact])
@pytest.mark.parametrize("pattern", [NMPattern(2, 4), NMPattern(4, 4)], ids=str)
def test_indivisible_rows(op, pattern):
    with pytest.raises(
        ValueError, match=r"in_features 6 is not a multiple of m=4 .*Choose an M"
    ):
        op(torch.zeros(2, 6), pattern)


@pytest.mark.parametrize("op", [sparsify, compact])
@pytest.mark.parametrize("pattern", [NMPattern(2, 4), NMPattern(4, 4)], ids=str)
def test_unknown_criterion(op, pattern):
    with pytest.raises(
        ValueError, match=r"Unknown criterion 'magnitud'\. Did you mean: magnitude\?"
    ):
        op(torch.zeros(2, 4), pattern, criterion="magnitud")


@pytest.mark.parametrize("op", [sparsify, compact])
def test_other_dtypes(op):
    with pytest.raises(TypeError, match=r"dtype torch\.float64\. Expected one of"):
        op(torch.zeros(2, 4, dtype=torch.float64), NMPattern(2, 4))


@pytest.mark.parametrize("shape", [(4,), (1, 2, 4)])
def test_compact_needs_two_dimensions(shape):
    with pytest.raises(
        ValueError, match=r"compact: x has shape .*\. Expected \[T, K\]: flatten it"
    ):
        compact(torch.zeros(shape), NMPattern(2, 4))
