"""Patterns: reading, writing, arithmetic, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.pattern import MAX_M, NMPattern, Unstructured, parse_pattern


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8:16", NMPattern(8, 16)),
        ("8of16", NMPattern(8, 16)),
        (" 2 : 4 ", NMPattern(2, 4)),
        ("2OF4", NMPattern(2, 4)),
        ("1:1", NMPattern(1, 1)),
        ("3:65536", NMPattern(3, MAX_M)),
        ("50%", Unstructured(0.5)),
        ("12.5 %", Unstructured(0.125)),
        ("0%", Unstructured(0.0)),
    ],
)
def test_parse(text, expected):
    assert parse_pattern(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "8:",
        ":16",
        "8:16:32",
        "8/16",
        "-1:4",
        "2:4x",
        "50",
        "0.5",
        "%",
        "2.5:4",
    ],
)
def test_parse_refuses_and_shows_the_form(text):
    with pytest.raises(
        ValueError, match=r"pattern '.*' is not understood\. Expected N:M"
    ):
        parse_pattern(text)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (8, MAX_M + 1), (0, 0), (-1, 4)])
def test_invalid_counts_say_that_n_is_kept(n, m):
    with pytest.raises(ValueError, match=f"pattern {n}:{m} is invalid.*number KEPT"):
        NMPattern(n, m)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_unstructured_out_of_range(share):
    with pytest.raises(ValueError, match=r"is invalid\. Expected 0 <= sparsity < 1"):
        Unstructured(share)


def test_everything_removed_is_refused():
    with pytest.raises(ValueError, match="Expected 0 <= sparsity < 1"):
        parse_pattern("100%")


def test_n_is_the_number_kept():
    # 1:4 and 6:8 tell kept and pruned apart; 2:4 and 8:16 do not.
    assert NMPattern(1, 4).density == 0.25
    assert NMPattern(1, 4).sparsity == 0.75
    assert NMPattern(6, 8).sparsity == 0.25
    assert NMPattern(6, 8).group(16) == (6, 8)
    assert Unstructured(0.75).density == 0.25


@pytest.mark.parametrize(
    ("pattern", "dense"),
    [
        (NMPattern(4, 4), True),
        (NMPattern(3, 4), False),
        (Unstructured(0.0), True),
        (Unstructured(0.01), False),
    ],
    ids=str,
)
def test_is_dense(pattern, dense):
    assert pattern.is_dense is dense


def test_slugs_are_fit_for_file_names():
    assert NMPattern(8, 16).slug == "8of16"
    assert Unstructured(0.5).slug == "unstructured50"
    assert Unstructured(0.125).slug == "unstructured12.5"
    assert parse_pattern(NMPattern(8, 16).slug) == NMPattern(8, 16)


@given(st.integers(1, MAX_M), st.integers(1, MAX_M))
@settings(deadline=None)
def test_text_of_nm_round_trips(a, b):
    pattern = NMPattern(min(a, b), max(a, b))
    assert parse_pattern(str(pattern)) == pattern
    assert parse_pattern(pattern.slug) == pattern


@given(st.floats(0.0, 1.0, exclude_max=True))
@settings(deadline=None)
def test_text_of_unstructured_round_trips(share):
    assert parse_pattern(str(Unstructured(share))) == Unstructured(share)


def test_text_of_unstructured_is_short():
    shares = (0.5, 0.07, 0.29, 0.125, 0.0, 0.999)
    texts = [str(Unstructured(share)) for share in shares]
    assert texts == ["50%", "7%", "29%", "12.5%", "0%", "99.9%"]


def test_indivisible_row_names_both_and_the_remedy():
    with pytest.raises(
        ValueError,
        match=r"in_features 11009 is not a multiple of m=4 \(pattern 2:4\)\. "
        r"Choose an M that divides 11009, or leave this layer out with `ignore`",
    ):
        NMPattern(2, 4).group(11009)


@pytest.mark.parametrize("in_features", [0, MAX_M + 1])
def test_unstructured_row_out_of_range(in_features):
    with pytest.raises(ValueError, match=f"in_features {in_features} is out of range"):
        Unstructured(0.5).group(in_features)


@pytest.mark.parametrize(
    ("share", "in_features", "kept"),
    [(0.5, 10, 5), (0.5, 128, 64), (0.7, 10, 3), (0.99, 10, 1), (0.0, 7, 7)],
)
def test_unstructured_keeps_a_share_and_at_least_one(share, in_features, kept):
    assert Unstructured(share).group(in_features) == (kept, in_features)


@pytest.mark.parametrize(
    ("density", "m", "expected"),
    [(0.5, 16, "8:16"), (0.0, 16, "1:16"), (1.0, 16, "16:16"), (0.3, 4, "1:4")],
)
def test_from_density(density, m, expected):
    assert NMPattern.from_density(density, m=m) == parse_pattern(expected)


@given(st.floats(0.0, 1.0), st.integers(1, 64))
@settings(deadline=None)
def test_from_density_is_the_nearest_pattern(density, m):
    found = NMPattern.from_density(density, m=m)
    assert all(
        abs(found.density - density) <= abs(n / m - density) + 1e-12
        for n in range(1, m + 1)
    )


@pytest.mark.parametrize("density", [-0.1, 1.1])
def test_from_density_out_of_range(density):
    with pytest.raises(ValueError, match=rf"density {density} is invalid\. Expected 0"):
        NMPattern.from_density(density, m=4)
