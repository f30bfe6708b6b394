"""The budget: exact, bounded, in order; against exact and exhaustive oracles."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_prune.budget import apportion, apportion_nm, project
from offline_prune.errors import InputError

SHARES = st.floats(-1.0, 2.0)


@st.composite
def problems(draw, *, most=12, biggest=10**9):
    """Draw (raw, sizes, sparsity, lower, upper) that can be solved."""
    count = draw(st.integers(1, most))
    raw = draw(st.lists(SHARES, min_size=count, max_size=count))
    sizes = draw(
        st.lists(st.integers(0, biggest), min_size=count, max_size=count).filter(any)
    )
    lower = draw(st.floats(0.0, 0.5))
    upper = draw(st.floats(0.5, 1.0))
    sparsity = draw(st.floats(lower, upper))
    return raw, sizes, sparsity, lower, upper


def solve_exactly(raw, sizes, sparsity, lower, upper):
    """Find the shift in rational arithmetic, at the corners of a monotone function."""
    raw = [Fraction(s) for s in raw]
    low, high, target = Fraction(lower), Fraction(upper), Fraction(sparsity)

    def mean(shift):
        clipped = [min(high, max(low, s + shift)) for s in raw]
        return sum(p * c for p, c in zip(sizes, clipped, strict=True)) / sum(sizes)

    corners = sorted({low - s for s in raw} | {high - s for s in raw})
    after = next(i for i, shift in enumerate(corners) if mean(shift) >= target)
    shift = corners[after]
    if after and mean(shift) > target:
        before = corners[after - 1]
        slope = (mean(shift) - mean(before)) / (shift - before)
        shift = before + (target - mean(before)) / slope
    return [float(min(high, max(low, s + shift))) for s in raw]


def test_projection_by_hand():
    found = project(
        [0.5, 0.6, 0.7, 1.1], [1, 1, 1, 1], sparsity=0.7, lower=0.3, upper=0.95
    )
    assert found == pytest.approx([0.516667, 0.616667, 0.716667, 0.95], abs=1e-6)


def test_what_meets_the_budget_stays():
    assert project([0.4, 0.6], [3, 3], sparsity=0.5) == [0.4, 0.6]
    assert project([0.7] * 7, [3] * 7, sparsity=0.7) == [0.7] * 7


@given(problems())
@settings(deadline=None)
def test_budget_is_met_within_the_bounds(problem):
    raw, sizes, sparsity, lower, upper = problem
    found = project(raw, sizes, sparsity=sparsity, lower=lower, upper=upper)
    assert all(lower <= share <= upper for share in found)
    total = math.fsum(p * s for p, s in zip(sizes, found, strict=True))
    assert abs(total / sum(sizes) - sparsity) <= 1e-12
    for (a, fa), (b, fb) in itertools.combinations(zip(raw, found, strict=True), 2):
        assert (a - b) * (fa - fb) >= 0  # order


@given(problems(most=8))
@settings(deadline=None)
def test_agrees_with_rational_arithmetic(problem):
    raw, sizes, sparsity, lower, upper = problem
    found = project(raw, sizes, sparsity=sparsity, lower=lower, upper=upper)
    weighted = [s for s, p in zip(found, sizes, strict=True) if p]
    expected = solve_exactly(*problem)
    # Units without weights do not move the mean; all else is determined.
    for share, exact, size in zip(found, expected, sizes, strict=True):
        if size * len(weighted) * 1000 > sum(sizes):
            assert share == pytest.approx(exact, abs=1e-8)


@given(problems())
@settings(deadline=None)
def test_projecting_again_changes_nothing(problem):
    raw, sizes, sparsity, lower, upper = problem
    bounds = {"sparsity": sparsity, "lower": lower, "upper": upper}
    once = project(raw, sizes, **bounds)
    assert project(once, sizes, **bounds) == once


@given(problems(biggest=1000), st.floats(-1.0, 1.0), st.randoms())
@settings(deadline=None)
def test_common_shift_and_order_of_units_do_not_matter(problem, shift, random):
    raw, sizes, sparsity, lower, upper = problem
    sizes = [size + 1 for size in sizes]
    bounds = {"sparsity": sparsity, "lower": lower, "upper": upper}
    found = project(raw, sizes, **bounds)
    shifted = project([share + shift for share in raw], sizes, **bounds)
    assert shifted == pytest.approx(found, abs=1e-9)
    order = list(range(len(raw)))
    random.shuffle(order)
    moved = project([raw[i] for i in order], [sizes[i] for i in order], **bounds)
    assert moved == pytest.approx([found[i] for i in order], abs=1e-9)


@given(problems(), st.floats(0.0, 1.0))
@settings(deadline=None)
def test_more_sparsity_takes_no_less_from_any_unit(problem, part):
    raw, sizes, sparsity, lower, upper = problem
    more = min(upper, sparsity + part * (upper - sparsity))
    bounds = {"lower": lower, "upper": upper}
    before = project(raw, sizes, sparsity=sparsity, **bounds)
    after = project(raw, sizes, sparsity=more, **bounds)
    # Units of a billionth of the weights are known to a thousandth only.
    for a, b, size in zip(before, after, sizes, strict=True):
        if 1000 * size > sum(sizes):
            assert b >= a - 1e-8


@pytest.mark.parametrize(
    ("sparsity", "lower", "upper"),
    [(0.96, 0.0, 0.95), (0.1, 0.2, 0.9), (1.5, 0.0, 1.0), (-0.1, 0.0, 1.0)],
)
def test_what_no_bounds_allow_is_refused(sparsity, lower, upper):
    with pytest.raises(InputError, match="wider bounds"):
        project([0.5, 0.5], [1, 1], sparsity=sparsity, lower=lower, upper=upper)


@pytest.mark.parametrize(
    ("raw", "sizes", "text"),
    [
        ([0.5], [1, 1], "1 shares for 2 sizes"),
        ([0.5, math.nan], [1, 1], "not all finite"),
        ([0.5, 0.5], [0, 0], "at least one"),
        ([0.5, 0.5], [3, -1], "at least one"),
        ([], [], "at least one"),
    ],
)
def test_wrong_arguments_are_named(raw, sizes, text):
    with pytest.raises(ValueError, match=text):
        project(raw, sizes, sparsity=0.5)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=4),
    st.data(),
)
@settings(deadline=None)
def test_counts_are_the_nearest_of_all(units, data):
    sizes = [size for _, size in units]
    if not any(sizes):
        sizes[0] = 3
    total = data.draw(st.integers(0, sum(sizes)))
    shares = project(
        [share for share, _ in units], sizes, sparsity=total / sum(sizes), upper=1.0
    )
    counts = apportion(shares, sizes, total=total)
    assert sum(counts) == total
    assert all(0 <= n <= size for n, size in zip(counts, sizes, strict=True))
    quotas = [share * size for share, size in zip(shares, sizes, strict=True)]

    def distance(candidate):
        return sum(abs(n - q) for n, q in zip(candidate, quotas, strict=True))

    possible = itertools.product(*(range(size + 1) for size in sizes))
    least = min(distance(c) for c in possible if sum(c) == total)
    assert distance(counts) == pytest.approx(least, abs=1e-5)


@given(problems(), st.floats(0, 1))
@settings(deadline=None)
def test_counts_are_exact_to_one_weight(problem, sparsity):
    raw, sizes, *_ = problem
    total = round(sparsity * sum(sizes))
    counts = apportion(raw, sizes, total=total)
    assert sum(counts) == total
    assert all(0 <= n <= size for n, size in zip(counts, sizes, strict=True))
    shares = project(raw, sizes, sparsity=total / sum(sizes), upper=1.0)
    for n, share, size in zip(counts, shares, sizes, strict=True):
        assert abs(n - share * size) < 1 + 1e-3


def test_equal_remainders_go_to_the_first():
    assert apportion([0.5] * 4, [3] * 4, total=6) == [2, 2, 1, 1]
    assert apportion([0.1] * 10, [7] * 10, total=7) == [1] * 7 + [0] * 3
    assert apportion([0.9, 0.1], [10, 10], total=0) == [0, 0]
    assert apportion([0.9, 0.1], [10, 10], total=20) == [10, 10]


@pytest.mark.parametrize("total", [-1, 21])
def test_impossible_totals_are_refused(total):
    with pytest.raises(InputError, match="Expected 0 to 20"):
        apportion([0.5, 0.5], [10, 10], total=total)


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 6)), min_size=1, max_size=6),
    st.sampled_from([2, 4, 8]),
    st.integers(0, 100),
)
@settings(deadline=None)
def test_patterns_are_the_nearest_roundings(units, m, percent):
    sizes = [size for _, size in units]
    most = 1 - 1 / m
    sparsity = most * percent / 100
    raw = [share / 100 for share, _ in units]
    kept = apportion_nm(raw, sizes, m=m, sparsity=sparsity)
    shares = project(raw, sizes, sparsity=sparsity, upper=most)
    choices = []
    for share, n in zip(shares, kept, strict=True):
        wish = m * (1 - share)
        whole = round(wish) if abs(wish - round(wish)) < 1e-5 else None
        near = {math.floor(wish), math.ceil(wish)} if whole is None else {whole}
        assert n in near
        assert 1 <= n <= m
        choices.append(near)
    target = m * (1 - sparsity) * sum(sizes)

    def miss(candidate):
        total = sum(n * size for n, size in zip(candidate, sizes, strict=True))
        return abs(total - target)

    assert miss(kept) == pytest.approx(
        min(map(miss, itertools.product(*choices))), abs=1e-3
    )


def owl_patterns(outliers, lam, removed, m):
    """Round every block by itself, as OWL's released code does for N:M."""
    low, high = min(outliers), max(outliers)
    k = [lam * (d - low) / (high - low) for d in outliers]
    offsets = [round(v - sum(k) / len(k)) for v in k]
    return [m - (removed - offset) for offset in offsets]


def test_patterns_agree_with_owl_where_its_mean_is_kept():
    from offline_prune.allocators.owl import owl_ratios

    outliers = [0.0, 1.0, 3.0, 4.0]
    assert owl_patterns(outliers, 2, 5, 8) == [2, 3, 3, 4]
    # OWL's lam is in kept weights of 8: 2 of 8 between the extremes.
    shares = owl_ratios(outliers, 0.125, sparsity=5 / 8)
    assert apportion_nm(shares, [1] * 4, m=8, sparsity=5 / 8) == [2, 3, 3, 4]


def test_uniform_patterns_round_the_first_blocks_up():
    assert apportion_nm([0.6] * 5, [7] * 5, m=4, sparsity=0.6) == [2, 2, 2, 1, 1]
    assert apportion_nm([0.5] * 5, [7] * 5, m=4, sparsity=0.5) == [2] * 5


def test_one_of_m_always_stays():
    kept = apportion_nm([1.0, 0.5], [10, 10], m=4, sparsity=0.75)
    assert kept == [1, 1]
    with pytest.raises(InputError, match="1 of 4 is kept"):
        apportion_nm([0.8, 0.8], [10, 10], m=4, sparsity=0.8)
