"""Selection: exact to one weight, ties to the lower index, against sorted lists."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.pattern import NMPattern
from offline_prune import selection
from offline_prune.selection import LayerTarget, removed, row_counts, select

# Few values, so that ties are the rule.
VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.5, -1.0, 2.0, 1e-40, float("inf")])


@st.composite
def layers(draw, rows=6, columns=9):
    """Draw scores ``[O, K]`` and a count."""
    shape = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    size = shape[0] * shape[1]
    values = draw(st.lists(VALUES, min_size=size, max_size=size))
    return torch.tensor(values).view(shape), draw(st.integers(0, size))


def lowest(row: list[float], count: int) -> list[int]:
    """Return the indices that go: the lowest, of equal ones the last."""
    return sorted(range(len(row)), key=lambda index: (row[index], -index))[:count]


def without(scores: torch.Tensor, counts: list[int]) -> list[list[bool]]:
    keep = []
    for row, count in zip(scores.tolist(), counts, strict=True):
        gone = lowest(row, count)
        keep.append([index not in gone for index in range(len(row))])
    return keep


def counts_of(scores: torch.Tensor, count: int) -> list[int]:
    """Divide a count over rows; the rest goes where the next weight is cheapest."""
    base, rest = divmod(count, len(scores))
    costs = [sorted(row)[base] for row in scores.tolist()] if rest else []
    extra = lowest(costs, rest)
    return [base + (row in extra) for row in range(len(scores))]


@given(layers())
@settings(deadline=None, max_examples=200)
def test_layer_loses_its_lowest(case):
    scores, count = case
    keep = select(scores, LayerTarget.count(count), compare="layer")
    expected = without(scores.reshape(1, -1), [count])
    assert keep.dtype is torch.bool
    assert keep.flatten().tolist() == expected[0]


@given(layers())
@settings(deadline=None, max_examples=200)
def test_rows_lose_equally_many_and_the_rest_where_it_costs_least(case):
    scores, count = case
    counts = counts_of(scores, count)
    keep = select(scores, LayerTarget.count(count), compare="row")
    assert keep.tolist() == without(scores, counts)
    assert row_counts(scores, removed=count).tolist() == counts


@given(layers(), st.data(), st.sampled_from(["row", "layer"]))
@settings(deadline=None, max_examples=200)
def test_counts_of_rows_are_obeyed(case, data, compare):
    scores, _ = case
    rows = [data.draw(st.integers(0, scores.shape[1])) for _ in scores]
    target = LayerTarget.per_row(torch.tensor(rows))
    assert target.removed == sum(rows)
    keep = select(scores, target, compare=compare)
    assert keep.tolist() == without(scores, rows)


@given(layers(), st.sampled_from(["row", "layer"]))
@settings(deadline=None)
def test_parts_of_a_large_layer_make_the_same_selection(case, compare):
    scores, count = case
    targets = [LayerTarget.count(count)]
    targets.append(LayerTarget.per_row(row_counts(scores, removed=count)))
    targets.append(LayerTarget.nm(NMPattern(1, scores.shape[1])))
    whole = [select(scores, target, compare=compare) for target in targets]
    with mock.patch.object(selection, "_CHUNK", 2 * scores.shape[1]):
        parts = [select(scores, target, compare=compare) for target in targets]
    assert all(map(torch.equal, whole, parts))


@given(layers(), st.data(), st.sampled_from(["row", "layer"]))
@settings(deadline=None)
def test_what_goes_at_less_sparsity_goes_at_more(case, data, compare):
    scores, more = case
    less = data.draw(st.integers(0, more))
    few = select(scores, LayerTarget.count(less), compare=compare)
    many = select(scores, LayerTarget.count(more), compare=compare)
    assert not (many & ~few).any()
    assert (removed(few), removed(many)) == (less, more)


@given(st.integers(0, 2**32), st.integers(0, 40), st.sampled_from(["row", "layer"]))
@settings(deadline=None)
def test_order_of_channels_and_rows_does_not_matter(seed, count, compare):
    generator = torch.Generator().manual_seed(seed)
    # Distinct scores: ties are decided by position.
    scores = torch.randperm(40, generator=generator).float().view(5, 8)
    rows = torch.randperm(5, generator=generator)
    columns = torch.randperm(8, generator=generator)
    target = LayerTarget.count(count)
    keep = select(scores, target, compare=compare)
    permuted = select(scores[rows][:, columns], target, compare=compare)
    assert torch.equal(permuted, keep[rows][:, columns])


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (6, 8), (4, 4), (16, 32)])
def test_n_of_every_m_stay(n, m):
    scores = torch.rand(7, 3 * m, generator=torch.Generator().manual_seed(n))
    scores = (scores * 8).round()  # ties
    keep = select(scores, LayerTarget.nm(NMPattern(n, m)), compare="layer")
    groups = scores.view(-1, m)
    assert keep.view(-1, m).tolist() == without(groups, [m - n] * len(groups))


def test_larger_layer_agrees_with_a_stable_sort():
    scores = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    keep = select(scores.bfloat16(), LayerTarget.count(44_444), compare="layer")
    flat = scores.bfloat16().double().flatten()
    # Stable on the reversed order: of equals the last comes first.
    order = len(flat) - 1 - flat.flip(0).argsort(stable=True)
    expected = torch.ones(len(flat), dtype=torch.bool)
    expected[order[:44_444]] = False
    assert torch.equal(keep.flatten(), expected)


@pytest.mark.parametrize("compare", ["row", "layer"])
def test_one_row_or_everything(compare):
    scores = torch.tensor([[3.0, 1.0, 2.0]])
    assert select(scores, LayerTarget.count(0), compare=compare).all()
    assert not select(scores, LayerTarget.count(3), compare=compare).any()


def test_totals():
    assert LayerTarget.nm(NMPattern(1, 4)).total((2, 8)) == 12
    assert LayerTarget.count(5).total((2, 8)) == 5
    assert LayerTarget.per_row(torch.tensor([1, 4])).total((2, 8)) == 5


@pytest.mark.parametrize(
    "target", [LayerTarget.count(1), LayerTarget.nm(NMPattern(1, 2))]
)
def test_nan_is_refused(target):
    scores = torch.tensor([[1.0, float("nan")], [float("nan"), 0.0]])
    with pytest.raises(ValueError, match="2 of 4 are NaN"):
        select(scores, target, compare="row")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (LayerTarget.count(7), "7 weights to be removed from a layer of 2 x 3"),
        (LayerTarget.per_row(torch.tensor([1, 4])), "2 rows, up to 4"),
        (LayerTarget.per_row(torch.tensor([1, 1, 1])), "counts of 3 rows"),
        (LayerTarget.nm(NMPattern(2, 4)), "not a multiple of m=4"),
    ],
)
def test_target_that_does_not_fit_is_refused(target, message):
    with pytest.raises(ValueError, match=message):
        select(torch.ones(2, 3), target, compare="row")


def test_scores_of_a_layer_have_two_dimensions():
    with pytest.raises(ValueError, match=r"found shape \(4,\)"):
        select(torch.ones(4), LayerTarget.count(1), compare="row")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "Expected one of them"),
        ({"pattern": NMPattern(2, 4), "removed": 3}, "Expected one of them"),
        ({"removed": -1}, "found removed -1"),
        ({"removed": 3, "rows": torch.tensor([1, 1])}, "rows sum to 2"),
        ({"removed": 0, "rows": torch.tensor([1, -1])}, "smallest -1"),
        ({"removed": 2, "rows": torch.ones(2)}, "Expected int64"),
    ],
)
def test_target_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LayerTarget(**fields)
