"""Selection: exactly N of every M, ties to the lower index, against a slow oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import keep_of_row

from nmsparse.keep import order_keys, select_keep, verify
from nmsparse.pattern import MAX_M, NMPattern, Unstructured

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SPECIALS = [0.0, -0.0, 1.0, -1.0, 1.0000001, math.inf, -math.inf, math.nan, -math.nan]
SPECIALS += [1e-40, -1e-40, 6e-8, 65504.0, -65504.0, 3e38]
VALUES = st.one_of(
    st.sampled_from(SPECIALS), st.floats(width=32), st.integers(-3, 3).map(float)
)


@st.composite
def cases(draw):
    """Draw (scores ``[rows, K]``, pattern)."""
    m = draw(st.integers(1, 64))
    n = draw(st.integers(1, m))
    groups = draw(st.integers(1, 3))
    rows = draw(st.integers(1, 2))
    values = draw(
        st.lists(VALUES, min_size=rows * groups * m, max_size=rows * groups * m)
    )
    dtype = draw(st.sampled_from(DTYPES))
    return torch.tensor(values).to(dtype).view(rows, groups * m), NMPattern(n, m)


@given(cases())
@settings(deadline=None, max_examples=300)
def test_agrees_with_the_oracle(case):
    scores, pattern = case
    keep = select_keep(scores, pattern)
    assert keep.dtype is torch.bool
    expected = [keep_of_row(row, pattern.n, pattern.m) for row in scores.tolist()]
    assert keep.tolist() == expected


@given(cases())
@settings(deadline=None)
def test_keeps_exactly_n_of_every_group(case):
    scores, pattern = case
    kept = select_keep(scores, pattern).unflatten(-1, (-1, pattern.m)).sum(-1)
    assert (kept == pattern.n).all()


@given(cases())
@settings(deadline=None)
def test_patterns_of_one_m_are_nested(case):
    scores, pattern = case
    inner = select_keep(scores, pattern)
    for n in range(pattern.n, pattern.m + 1):
        outer = select_keep(scores, NMPattern(n, pattern.m))
        assert (outer | ~inner).all(), f"{pattern} is not inside {n}:{pattern.m}"
        inner = outer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", ["1:4", "2:4", "6:8", "3:7", "17:64"])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -1.5, math.inf, math.nan])
def test_equal_scores_keep_the_lower_indices(dtype, pattern, value):
    n, m = map(int, pattern.split(":"))
    keep = select_keep(torch.full((2, 2 * m), value, dtype=dtype), NMPattern(n, m))
    assert keep.tolist() == [([True] * n + [False] * (m - n)) * 2] * 2


def test_tie_at_the_threshold():
    scores = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    keep = select_keep(scores, NMPattern(2, 4))
    assert keep.tolist() == [False, True, True, False, True, True, False, False]


def test_negative_zero_equals_zero():
    scores = torch.tensor([-0.0, 0.0, -0.0, 0.0])
    assert select_keep(scores, NMPattern(1, 4)).tolist() == [True, False, False, False]
    assert select_keep(-scores, NMPattern(1, 4)).tolist() == [True, False, False, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_of_either_sign_is_kept_before_infinity(dtype):
    scores = torch.tensor([math.inf, math.nan, -math.nan, math.inf], dtype=dtype)
    assert select_keep(scores, NMPattern(2, 4)).tolist() == [False, True, True, False]


def test_negative_scores_are_ordered():
    scores = torch.tensor([-3.0, -1.0, -2.0, -math.inf])
    assert select_keep(scores, NMPattern(2, 4)).tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_group(dtype):
    scores = torch.zeros(MAX_M, dtype=dtype)
    keep = select_keep(scores, NMPattern(3, MAX_M))
    assert keep.nonzero().flatten().tolist() == [0, 1, 2]
    scores[-1] = 1
    keep = select_keep(scores, NMPattern(3, MAX_M))
    assert keep.nonzero().flatten().tolist() == [0, 1, MAX_M - 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_smallest_difference_outranks_any_position(dtype):
    scores = torch.ones(MAX_M, dtype=dtype)
    bits = torch.int32 if dtype is torch.float32 else torch.int16
    scores.view(bits)[-1] += 1  # the next larger number
    keep = select_keep(scores, NMPattern(1, MAX_M))
    assert keep.nonzero().flatten().tolist() == [MAX_M - 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_are_unique_and_ordered_as_the_scores(dtype):
    scores = torch.tensor([-math.inf, -2.0, -2.0, -0.0, 0.0, 1.0, math.inf, math.nan])
    keys = order_keys(scores.to(dtype), 8).flatten().tolist()
    assert len(set(keys)) == 8
    # Equal scores: the lower index has the higher key.
    assert sorted(range(8), key=keys.__getitem__) == [0, 2, 1, 4, 3, 5, 6, 7]


def test_unstructured_uses_the_whole_row():
    scores = torch.tensor([[9.0, 8.0, 7.0, 1.0, 2.0, 3.0], [0.0] * 6])
    keep = select_keep(scores, Unstructured(0.5))
    assert keep.tolist() == [
        [True, True, True, False, False, False],
        [True, True, True, False, False, False],
    ]


@given(st.integers(1, 80), st.floats(0.0, 0.99))
@settings(deadline=None)
def test_unstructured_agrees_with_the_oracle(in_features, sparsity):
    scores = torch.randn(2, in_features, generator=torch.Generator().manual_seed(1))
    kept = max(1, round(in_features * (1 - sparsity)))
    expected = [keep_of_row(row, kept, in_features) for row in scores.tolist()]
    assert select_keep(scores, Unstructured(sparsity)).tolist() == expected


def test_repeated_calls_agree():
    scores = torch.randint(0, 3, (64, 256), generator=torch.Generator().manual_seed(2))
    first = select_keep(scores.bfloat16(), NMPattern(8, 16))
    for _ in range(5):
        assert torch.equal(select_keep(scores.bfloat16(), NMPattern(8, 16)), first)


def test_a_row_does_not_depend_on_its_batch():
    scores = torch.randn(16, 64, generator=torch.Generator().manual_seed(3))
    together = select_keep(scores, NMPattern(2, 4))
    alone = [select_keep(row, NMPattern(2, 4)) for row in scores]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64), (0, 64), (2, 0, 64)])
def test_any_number_of_dimensions(shape):
    keep = select_keep(torch.randn(shape), NMPattern(1, 4))
    assert keep.shape == shape
    assert keep.sum() == keep.numel() // 4


def test_non_contiguous_scores():
    scores = torch.randn(64, 8, generator=torch.Generator().manual_seed(4)).t()
    expected = select_keep(scores.contiguous(), NMPattern(2, 4))
    assert torch.equal(select_keep(scores, NMPattern(2, 4)), expected)


def test_dense_pattern_keeps_everything():
    assert select_keep(torch.zeros(2, 8), NMPattern(4, 4)).all()


def test_scores_are_not_modified():
    scores = torch.tensor([[-0.0, math.nan, 1.0, 2.0]])
    before = scores.clone()
    select_keep(scores, NMPattern(2, 4))
    assert torch.equal(scores.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool], ids=str)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(
        TypeError, match=rf"scores have dtype {dtype}\. Expected one of .*convert them"
    ):
        select_keep(torch.zeros(4, dtype=dtype), NMPattern(2, 4))


def test_indivisible_rows_are_refused():
    with pytest.raises(ValueError, match="in_features 6 is not a multiple of m=4"):
        select_keep(torch.zeros(2, 6), NMPattern(2, 4))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0, 1, 0, 1], True),
        ([0, 0, 0, 0], True),
        ([1, 1, 0, 1], False),
        ([0, 1, 1, 0, 1, 1, 1, 0], False),
        ([math.nan, math.nan, math.nan, 0], False),
        ([-0.0, 1, 1, 0], True),
    ],
)
def test_verify(row, expected):
    tensor = torch.tensor([row, [0.0] * len(row)])
    assert verify(tensor, NMPattern(2, 4)) is expected


def test_verify_unstructured_and_shape():
    assert verify(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), Unstructured(0.5))
    assert not verify(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), Unstructured(0.5))
    with pytest.raises(ValueError, match="in_features 6 is not a multiple of m=4"):
        verify(torch.zeros(6), NMPattern(2, 4))
