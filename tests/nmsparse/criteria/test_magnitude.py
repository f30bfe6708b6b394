"""The magnitude criterion: hand-computed, and invariant where it should be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.criteria import DEFAULT_CRITERION, criteria
from nmsparse.criteria.magnitude import magnitude
from nmsparse.ops.sparsify import sparsify
from nmsparse.pattern import NMPattern


def kept(x, pattern):
    return sparsify(x, pattern) != 0


def test_hand_computed():
    x = torch.tensor([[4.0, -3.0, 1.0, 2.0], [0.5, 3.0, -1.0, 2.0]])
    found = sparsify(x, NMPattern(2, 4), criterion="magnitude")
    assert found.tolist() == [[4.0, -3.0, 0.0, 0.0], [0.0, 3.0, 0.0, 2.0]]


def test_it_is_the_registered_default():
    assert DEFAULT_CRITERION == "magnitude"
    assert criteria.get(DEFAULT_CRITERION) is magnitude


def test_it_has_no_factor():
    assert magnitude.factor(torch.ones(2, 4)) is None
    assert magnitude.batch_factor(torch.ones(2, 4)) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keeps_the_dtype(dtype):
    assert sparsify(torch.ones(1, 4, dtype=dtype), NMPattern(1, 4)).dtype is dtype


NONZERO = st.integers(-50, 50).filter(bool)


@given(st.lists(NONZERO, min_size=8, max_size=8), st.integers(-4, 4))
@settings(deadline=None)
def test_selection_ignores_sign_and_scale(values, exponent):
    x = torch.tensor([values], dtype=torch.float32)
    expected = kept(x, NMPattern(2, 4))
    assert torch.equal(kept(-x, NMPattern(2, 4)), expected)
    assert torch.equal(kept(x * 2.0**exponent, NMPattern(2, 4)), expected)


@given(st.permutations(list(range(8))))
@settings(deadline=None)
def test_selection_follows_a_permutation_of_the_group(order):
    x = torch.tensor([[5.0, -7.0, 1.0, 0.5, -2.0, 3.0, 8.0, -4.0]])
    expected = kept(x, NMPattern(3, 8))[:, order]
    assert torch.equal(kept(x[:, order], NMPattern(3, 8)), expected)
