"""Row counts on tensors against the budget in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_prune.budget import apportion, project
from offline_prune.channels.rows import split_rows


@given(
    st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=30),
    st.integers(1, 200),
    st.floats(0, 1),
    st.floats(0, 0.4),
)
@settings(deadline=None)
def test_counts_are_those_of_the_budget(shares, columns, part, reach):
    removed = round(part * len(shares) * columns)
    share = removed / (len(shares) * columns)
    lower, upper = max(0.0, share - reach), min(1.0, share + reach)
    found = split_rows(
        torch.tensor(shares, dtype=torch.float64),
        columns,
        removed=removed,
        lower=lower,
        upper=upper,
    )
    assert found.dtype == torch.int64
    assert int(found.sum()) == removed
    assert int(found.min()) >= 0
    assert int(found.max()) <= columns
    exact = project(
        shares, [columns] * len(shares), sparsity=share, lower=lower, upper=upper
    )
    for count, quota in zip(found.tolist(), exact, strict=True):
        assert abs(count - quota * columns) < 1 + 1e-4


def test_equal_remainders_go_to_the_first():
    shares = [0.25, 0.25, 0.5, 0.25]
    found = split_rows(
        torch.tensor(shares), 6, removed=8, lower=0.0, upper=1.0
    ).tolist()
    assert found == apportion(shares, [6] * 4, total=8) == [2, 2, 3, 1]


@pytest.mark.parametrize("removed", [0, 12])
def test_nothing_and_everything(removed):
    found = split_rows(
        torch.tensor([0.1, 0.9, 0.4]), 4, removed=removed, lower=0.0, upper=1.0
    )
    assert found.tolist() == [removed // 3] * 3
