"""Units to round up: exhaustive on small cases, near the target on large ones."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_prune.rounding import UNIT, round_up


@given(
    st.lists(
        st.tuples(st.integers(0, UNIT - 1), st.integers(1, 9)), min_size=1, max_size=8
    ),
    st.floats(0, 30),
)
@settings(deadline=None)
def test_best_of_all_choices(units, missing):
    fractions, sizes = zip(*units, strict=True)

    def rank(ups):
        total = sum(up * size for up, size in zip(ups, sizes, strict=True))
        error = sum(
            size * (UNIT - fraction if up else fraction)
            for up, size, fraction in zip(ups, sizes, fractions, strict=True)
        )
        return (round(abs(total - missing), 3), -total, error, [-up for up in ups])

    allowed = [(0, 1) if fraction else (0,) for fraction in fractions]
    assert round_up(fractions, sizes, missing=missing) == list(
        min(itertools.product(*allowed), key=rank)
    )


@pytest.mark.parametrize("missing", [0.0, 1234567.0, 20000000.0])
def test_many_distinct_sizes_come_near(missing):
    # More sums than are followed: 2^60 of them.
    sizes = [1_000_003 + 7919 * index * index for index in range(60)]
    share = missing / sum(sizes)
    ups = round_up([max(1, int(share * UNIT))] * 60, sizes, missing=missing)
    reached = sum(up * size for up, size in zip(ups, sizes, strict=True))
    assert abs(reached - missing) <= max(sizes) / 2
