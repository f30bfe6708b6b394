"""Balanced groups: a permutation whose groups hold channels of all energies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_prune.online.balance import balanced_groups


def test_dealt_back_and_forth():
    # Ranks 0..7 on two groups: 0 3 4 7 and 1 2 5 6.
    energy = torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1])
    assert balanced_groups(energy, 4).tolist() == [0, 3, 4, 7, 1, 2, 5, 6]
    shuffled = torch.tensor([3, 0, 7, 5, 1, 6, 2, 4])
    groups = balanced_groups(energy[shuffled], 4).view(2, 4)
    found = {frozenset(shuffled[g].tolist()) for g in groups}
    assert found == {frozenset({0, 3, 4, 7}), frozenset({1, 2, 5, 6})}


@settings(deadline=None)
@given(st.integers(1, 8), st.sampled_from([1, 2, 4, 16]), st.integers(0, 1000))
def test_a_permutation_that_ascends_within_groups(count, m, seed):
    generator = torch.Generator().manual_seed(seed)
    energy = torch.rand(count * m, generator=generator).exp()
    groups = balanced_groups(energy, m)
    assert sorted(groups.tolist()) == list(range(count * m))
    assert (groups.view(count, m).diff(dim=1) > 0).all()


def test_loud_neighbours_are_spread():
    energy = torch.ones(64)
    energy[:4] = 100.0  # all of them in the first group of 16 otherwise
    loud = (balanced_groups(energy, 16).view(4, 16) < 4).sum(1)
    assert loud.tolist() == [1, 1, 1, 1]


def test_m_must_divide():
    with pytest.raises(ValueError, match="cannot be dealt"):
        balanced_groups(torch.ones(10), 4)
