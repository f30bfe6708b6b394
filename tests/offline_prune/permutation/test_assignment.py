"""Dealing channels: disjoint swaps, and scipy's assignment where it is installed."""

from __future__ import annotations

import itertools
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.pattern import NMPattern
from offline_prune.errors import MissingDependencyError
from offline_prune.permutation.assignment import optimal, swaps
from offline_prune.permutation.search import kept_score, refine, serpentine


def total(gains, result):
    return float(gains[torch.arange(len(gains)), result].double().sum())


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(0, 5), min_size=n, max_size=n), min_size=n, max_size=n
        )
    )
)
@settings(deadline=None)
def test_swaps_gain_and_leave_no_pair_that_would(rows):
    gains = torch.tensor(rows, dtype=torch.float32)
    result = swaps(gains)
    place = torch.arange(len(gains))
    assert torch.equal(result[result], place)  # pairs exchange
    assert total(gains, result) >= total(gains, place)
    profit = gains + gains.T - gains.diagonal()[:, None] - gains.diagonal()
    alone = (result == place).nonzero().flatten().tolist()
    assert all(profit[g, h] <= 0 for g, h in itertools.combinations(alone, 2))


def test_best_swap_goes_first():
    gains = torch.tensor([[0.0, 5.0, 9.0], [4.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    assert swaps(gains).tolist() == [2, 1, 0]


def test_missing_scipy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependencyError, match="pip install scipy"):
        optimal(torch.zeros(2, 2))


def exhaustive(gains, *, maximize):
    assert maximize
    orders = itertools.permutations(range(len(gains)))
    best = max(orders, key=lambda o: sum(gains[g, r] for g, r in enumerate(o)))
    return list(range(len(gains))), list(best)


def test_optimal_assignment_is_used(monkeypatch):
    # scipy is no dependency: an exhaustive search stands in for it.
    scipy = types.SimpleNamespace(linear_sum_assignment=exhaustive)
    monkeypatch.setitem(sys.modules, "scipy.optimize", scipy)
    gains = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [2.0, 0.0, 0.0]])
    # All three move on by one; swaps can only exchange two of them.
    assert optimal(gains).tolist() == [1, 2, 0]
    assert total(gains, optimal(gains)) > total(gains, swaps(gains))
    scores = torch.rand(8, 16, generator=torch.Generator().manual_seed(0))
    pattern = NMPattern(2, 4)
    start = serpentine(scores, pattern)
    found = refine(scores, pattern, start, method="assignment")
    assert sorted(found.tolist()) == list(range(16))
    assert kept_score(scores, pattern, found) > kept_score(scores, pattern, start)
