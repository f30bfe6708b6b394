"""AlphaPruning's map from exponents to shares, and its measure."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.blocks import random_weights

from offline_prune.allocators.alpha_pruning import AlphaPruning, alpha_ratios
from offline_prune.allocators.base import BlockView
from offline_prune.budget import project


def view(weights):
    return BlockView(index=0, weights=weights, statistics={})


def published_ratios(alphas, eps, sizes, sparsity):
    """Follow the released code: factors between s1 and s2, then rescale."""
    s1, s2 = 1 - eps, 1 + eps
    low, high = min(alphas), max(alphas)
    r = [(a - low) / (high - low) * (s2 - s1) + s1 for a in alphas]
    scaler = sparsity * sum(sizes) / sum(p * f for p, f in zip(sizes, r, strict=True))
    return [f * scaler for f in r]


def test_ratios_by_hand():
    found = alpha_ratios([2.0, 3.0, 5.0], 0.3, sizes=[1, 2, 1], sparsity=0.7)
    assert found == pytest.approx([0.515789, 0.663158, 0.957895], abs=1e-6)


def test_shares_above_one_are_mended_by_the_projection():
    raw = alpha_ratios([2.0, 4.0], 0.3, sizes=[1, 1], sparsity=0.8)
    assert raw == pytest.approx([0.56, 1.04])
    shares = project(raw, [1, 1], sparsity=0.8, upper=0.95)
    assert shares == pytest.approx([0.65, 0.95])


@given(
    st.lists(
        st.tuples(st.floats(1.1, 9.0), st.integers(1, 10**6)), min_size=2, max_size=9
    ).filter(lambda blocks: max(blocks)[0] - min(blocks)[0] > 1e-3),
    st.floats(0.05, 0.9),
    st.floats(0.1, 0.9),
)
def test_ratios_are_the_published_ones(blocks, eps, sparsity):
    alphas, sizes = map(list, zip(*blocks, strict=True))
    found = alpha_ratios(alphas, eps, sizes=sizes, sparsity=sparsity)
    assert found == pytest.approx(published_ratios(alphas, eps, sizes, sparsity))
    assert max(found) / min(found) == pytest.approx((1 + eps) / (1 - eps))
    total = math.fsum(p * s for p, s in zip(sizes, found, strict=True))
    assert total / sum(sizes) == pytest.approx(sparsity)


@pytest.mark.parametrize("metric", ["alpha_peak", "alpha_mid", "alpha_full"])
def test_measure_is_the_mean_over_linears(metric):
    allocator = AlphaPruning(metric=metric)
    weights = random_weights(0)
    single = [allocator.measure(view({name: w})) for name, w in weights.items()]
    assert allocator.measure(view(weights)) == pytest.approx(sum(single) / len(single))
    assert len({round(alpha, 6) for alpha in single}) == len(single)


def test_mid_is_computed_from_singular_values():
    weight = random_weights(0)["q"]
    values = torch.linalg.svdvals(weight).square().sort().values.tolist()  # 8
    tail = [math.log(value / values[4]) for value in values[4:]]
    assert AlphaPruning(metric="alpha_mid").measure(view({"q": weight})) == (
        pytest.approx(1 + 4 / sum(tail), rel=1e-4)
    )


def test_zeros_and_identities_are_left_out():
    weights = random_weights(0)
    allocator = AlphaPruning()
    dead = {"dead": torch.zeros(8, 8), "identity": torch.eye(8), **weights}
    assert allocator.measure(view(dead)) == allocator.measure(view(weights))
    assert math.isnan(allocator.measure(view({"dead": torch.zeros(8, 8)})))


def test_lighter_tails_lose_more():
    found = AlphaPruning().ratios([2.0, 4.0, 3.0], sizes=[5, 5, 5], sparsity=0.5)
    assert found[0] < found[2] < found[1]
