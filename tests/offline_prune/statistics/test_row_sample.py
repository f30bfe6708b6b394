"""The sample of rows: evenly spread, bounded, and the same for every split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_prune.statistics import InputStatistics, Need


def numbered(lengths):
    """Return sequences whose rows carry their sequence and their place."""
    return [
        torch.stack([torch.full((n,), float(i)), torch.arange(float(n))], dim=1)
        for i, n in enumerate(lengths)
    ]


def statistics(rows, sequences):
    return InputStatistics(
        2, needs={Need.SAMPLE}, sample_rows=rows, sequences=sequences
    )


def test_rows_of_a_sequence_are_midpoints_of_equal_parts():
    found = statistics(4, 1)
    found.update(numbered([16])[0])
    assert found.sample[:, 1].tolist() == [2, 6, 10, 14]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    rows=st.integers(1, 40),
    data=st.data(),
)
def test_every_order_gives_the_same_rows(lengths, rows, data):
    items = numbered(lengths)
    order = data.draw(st.permutations(range(len(items))))
    found, expected = statistics(rows, len(items)), statistics(rows, len(items))
    for index in order:
        found.update(items[index], index=index)
    for item in items:
        expected.update(item)
    assert torch.equal(found.sample, expected.sample)
    taken = [tuple(row) for row in expected.sample.tolist()]
    assert taken == sorted(set(taken)), "by sequence, and no row twice"
    assert len(taken) <= rows
    if min(lengths) >= rows:
        assert len(taken) == rows, "every place is used where there are rows enough"


def test_long_sequences_share_the_places_evenly():
    found = statistics(10, 4)
    for item in numbered([50] * 4):
        found.update(item)
    assert found.sample[:, 0].unique(return_counts=True)[1].tolist() == [2, 3, 2, 3]


def test_more_sequences_than_rows_are_thinned():
    found = statistics(3, 9)
    for item in numbered([5] * 9):
        found.update(item)
    assert found.sample[:, 0].tolist() == [2, 5, 8]


def test_undeclared_sequences_fill_the_room_in_turn():
    found = statistics(6, None)
    for item in numbered([4, 100, 100]):
        found.update(item)
    assert found.sample[:, 0].tolist() == [0, 0, 0, 0, 1, 1]
    other = statistics(6, None)
    other.update(numbered([9])[0])
    found.merge(other)
    assert found.sample.shape == (6, 2), "merged samples keep to the bound"


def test_a_sequence_beyond_the_declared_number_is_refused():
    with pytest.raises(ValueError, match="sequence 2 of 2"):
        statistics(4, 2).update(torch.zeros(3, 2), index=2)


def test_the_sample_is_a_copy():
    x = torch.ones(4, 2)
    found = statistics(4, 1)
    found.update(x)
    x.zero_()
    assert found.sample.eq(1).all()
