"""Magnitude: the official threshold, and what must not change it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.pattern import NMPattern
from offline_prune.scorers.magnitude import Magnitude
from offline_prune.selection import LayerTarget

WEIGHT = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))


def keep_of(weight, target):
    return Magnitude().prune(weight, None, target).keep


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.7, 0.95])
def test_agrees_with_the_official_threshold(sparsity):
    count = int(WEIGHT.numel() * sparsity)
    threshold = WEIGHT.abs().flatten().sort()[0][count]
    official = WEIGHT.abs() <= threshold  # one more than asked
    keep = keep_of(WEIGHT, LayerTarget.count(count + 1))
    assert torch.equal(~keep, official)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (6, 8)])
def test_agrees_with_the_official_groups(n, m):
    gone = torch.zeros(WEIGHT.shape, dtype=torch.bool)
    for start in range(0, WEIGHT.shape[1], m):
        part = WEIGHT.abs()[:, start : start + m]
        index = start + torch.topk(part, m - n, dim=1, largest=False)[1]
        gone.scatter_(1, index, True)
    assert torch.equal(~keep_of(WEIGHT, LayerTarget.nm(NMPattern(n, m))), gone)


@given(st.integers(0, 240), st.integers(-60, 60), st.integers(0, 2**32))
@settings(deadline=None)
def test_sign_and_scale_do_not_matter(count, exponent, seed):
    target = LayerTarget.count(count)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, WEIGHT.shape, generator=generator)
    keep = keep_of(WEIGHT, target)
    assert torch.equal(keep_of(WEIGHT * (2.0 * signs - 1), target), keep)
    assert torch.equal(keep_of(WEIGHT * 2.0**exponent, target), keep)


def test_compares_the_whole_layer_unless_told_otherwise():
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    target = LayerTarget.count(2)
    assert Magnitude().prune(weight, None, target).weight.tolist() == [
        [0, 0, 3],
        [4, 5, 6],
    ]
    assert Magnitude(compare="row").prune(weight, None, target).weight.tolist() == [
        [0, 2, 3],
        [0, 5, 6],
    ]
