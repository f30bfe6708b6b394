"""Amber Pruner: against the published formula, exact quantiles, scale invariance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsparse.criteria.amber_pruner import amber_pruner, quantile


def published(weight):
    """The released formula, with exact quantiles."""
    flat = weight.float().flatten()
    low, high = torch.quantile(flat, 0.005), torch.quantile(flat, 0.995)
    inside = flat[(flat >= low) & (flat <= high)]
    std = inside.std(correction=0).clamp_min(1e-8)
    norms = ((weight.float() - inside.mean()) / std).norm(dim=0)
    return norms / norms.min().clamp_min(1e-8)


def heavy(*shape, seed=0):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.2
    weight.view(-1)[:: weight.numel() // 7] *= 50
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_formula(dtype):
    weight = heavy(60, 24).to(dtype)
    torch.testing.assert_close(amber_pruner.factor(weight), published(weight))


def test_outliers_do_not_move_the_mean():
    weight = torch.ones(100, 4)
    weight[:50] = -1
    weight[0, 3] = 1e6
    factor = amber_pruner.factor(weight)
    torch.testing.assert_close(factor[:3], torch.ones(3), rtol=1e-2, atol=0)
    # A mean of 2500 would make all channels alike.
    assert factor[3] > 1e4


def test_the_lightest_channel_has_factor_one():
    factor = amber_pruner.factor(heavy(40, 16))
    assert factor.min() == 1
    assert (factor >= 1).all()


@given(st.integers(-8, 8), st.booleans())
@settings(deadline=None)
def test_a_scaled_weight_has_the_same_factor(exponent, negative):
    weight = heavy(30, 16)
    scaled = weight * 2.0**exponent * (-1 if negative else 1)
    torch.testing.assert_close(
        amber_pruner.factor(scaled), amber_pruner.factor(weight), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("weight", [torch.zeros(4, 8), torch.ones(4, 8)], ids=str)
def test_a_constant_weight_is_finite(weight):
    assert amber_pruner.factor(weight).isfinite().all()


def test_it_is_the_same_every_time():
    weight = heavy(300, 400)  # more than the 100 000 of which a sample was drawn
    assert torch.equal(amber_pruner.factor(weight), amber_pruner.factor(weight))


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
    st.floats(0, 1),
)
@settings(deadline=None)
def test_quantile_is_that_of_torch(values, share):
    flat = torch.tensor(values)
    expected = torch.quantile(flat.double(), share)
    assert abs(quantile(flat, share) - float(expected)) <= 1e-4
