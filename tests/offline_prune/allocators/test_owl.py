"""OWL against its formulas, written out on concatenated scores."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocks import block_of, random_block, random_inputs, random_weights

from offline_prune.allocators.base import BlockView
from offline_prune.allocators.owl import Owl, owl_ratios
from offline_prune.statistics.inputs import InputStatistics

OUTLIERS = st.lists(st.floats(0.0, 100.0), min_size=2, max_size=12).filter(
    lambda values: max(values) - min(values) > 1e-3
)


def wanda_scores(weights, inputs):
    """Return all scores of a block as one vector: |W| times the input norms."""
    parts = []
    for name, weight in weights.items():
        rows = torch.cat(inputs[name])
        scaler = (rows**2).sum(0) / len(inputs[name])
        parts.append((weight.abs() * scaler.sqrt()).flatten())
    return torch.cat(parts)


def published_ratios(outliers, lam, sparsity):
    """Follow the released code: rescale, centre, and turn kept into removed."""
    low, high = min(outliers), max(outliers)
    scaled = [(d - low) / (high - low) * lam * 2 for d in outliers]
    mean = sum(scaled) / len(scaled)
    kept = [value - mean + (1 - sparsity) for value in scaled]
    return [1 - value for value in kept]


def test_ratios_by_hand():
    found = owl_ratios([0.0, 1.0, 3.0, 4.0], 0.08, sparsity=0.7)
    assert found == pytest.approx([0.78, 0.74, 0.66, 0.62], abs=1e-12)


@given(OUTLIERS, st.floats(0.01, 0.3), st.floats(0.1, 0.9))
def test_ratios_are_the_published_ones(outliers, lam, sparsity):
    found = owl_ratios(outliers, lam, sparsity=sparsity)
    assert found == pytest.approx(published_ratios(outliers, lam, sparsity), abs=1e-9)
    assert sum(found) / len(found) == pytest.approx(sparsity, abs=1e-9)
    assert max(found) - min(found) == pytest.approx(2 * lam, abs=1e-9)


@given(OUTLIERS, st.floats(0.1, 10.0), st.floats(-50.0, 50.0))
def test_ratios_ignore_scale_and_offset_of_the_measure(outliers, a, b):
    moved = [a * value + b for value in outliers]
    assert owl_ratios(moved, 0.08, sparsity=0.7) == pytest.approx(
        owl_ratios(outliers, 0.08, sparsity=0.7), abs=1e-6
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("m", [1.0, 3.0, 5.0])
def test_measure_is_the_share_of_outliers(seed, m):
    weights, inputs = random_weights(seed), random_inputs(seed)
    scores = wanda_scores(weights, inputs).double()
    expected = 100 * float((scores > m * scores.mean()).double().mean())
    assert 0 < expected < 100
    assert Owl(m=m).measure(block_of(weights, inputs)) == pytest.approx(expected)


def test_one_mean_over_all_linears():
    # Scores 1, 1, 1 | 5: the mean is 2, and 5 is above 2.4 times 2 only together.
    weights = {"a": torch.ones(1, 3), "b": torch.full((1, 1), 5.0)}
    inputs = {"a": [torch.ones(1, 3)], "b": [torch.ones(1, 1)]}
    assert Owl(m=2.4).measure(block_of(weights, inputs)) == 25.0
    assert Owl(m=2.5).measure(block_of(weights, inputs)) == 0.0  # strictly above


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**12])
def test_measure_ignores_the_scale_of_scores(factor):
    weights = {n: w * factor for n, w in random_weights(0).items()}
    scaled = block_of(weights, random_inputs(0))
    assert Owl(m=2.0).measure(scaled) == Owl(m=2.0).measure(random_block(0)) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_may_have_16_bits(dtype):
    weights = {n: w.to(dtype) for n, w in random_weights(0).items()}
    wide = {n: w.float() for n, w in weights.items()}
    inputs = random_inputs(0)
    assert Owl(m=2.0).measure(block_of(weights, inputs)) == Owl(m=2.0).measure(
        block_of(wide, inputs)
    )


def test_experts_without_tokens_are_left_out():
    block = random_block(0)
    without = BlockView(
        index=0,
        weights={**block.weights, "expert": torch.ones(64, 8)},
        statistics={**block.statistics, "expert": InputStatistics(8, needs=[])},
    )
    assert Owl(m=2.0).measure(without) == Owl(m=2.0).measure(block)
    silent = BlockView(
        index=0,
        weights={"expert": torch.ones(64, 8)},
        statistics={"expert": InputStatistics(8, needs=[])},
    )
    assert math.isnan(Owl().measure(silent))


@settings(max_examples=20)
@given(OUTLIERS)
def test_more_outliers_lose_less(outliers):
    found = Owl().ratios(outliers, sizes=[1] * len(outliers), sparsity=0.7)
    ranked = sorted(zip(outliers, found, strict=True))
    assert all(a[1] >= b[1] for a, b in itertools.pairwise(ranked))
