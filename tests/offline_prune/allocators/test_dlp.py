"""DLP against its formulas, written out on concatenated scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.blocks import block_of, random_inputs, random_weights

from offline_prune.allocators.base import BlockView
from offline_prune.allocators.dlp import Dlp, dlp_ratios
from offline_prune.statistics.inputs import InputStatistics


def published_ratios(statistics, alpha, sparsity):
    """Follow the released code: importance, rescale, centre, removed."""
    importance = [1 - value / sum(statistics) for value in statistics]
    low, high = min(importance), max(importance)
    scaled = [(i - low) / (high - low) * alpha * 2 for i in importance]
    mean = sum(scaled) / len(scaled)
    return [1 - (value - mean + 1 - sparsity) for value in scaled]


def test_ratios_by_hand():
    found = dlp_ratios([1.0, 2.0, 3.0, 4.0], 0.15, sparsity=0.7)
    assert found == pytest.approx([0.55, 0.65, 0.75, 0.85], abs=1e-12)


@given(
    st.lists(st.floats(0.01, 100.0), min_size=2, max_size=12).filter(
        lambda values: max(values) - min(values) > 1e-2 * max(values)
    ),
    st.floats(0.01, 0.3),
    st.floats(0.1, 0.9),
)
def test_ratios_are_the_published_ones(statistics, alpha, sparsity):
    found = dlp_ratios(statistics, alpha, sparsity=sparsity)
    expected = published_ratios(statistics, alpha, sparsity)
    assert found == pytest.approx(expected, abs=1e-9)
    # The larger the score, the more is removed.
    ranked = [share for _, share in sorted(zip(statistics, found, strict=True))]
    assert ranked == sorted(ranked)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_measure_summarises_all_scores(seed, statistic):
    weights, inputs = random_weights(seed), random_inputs(seed)
    scores = torch.cat(
        [
            (w.abs() * (torch.cat(inputs[n]) ** 2).sum(0).div(2).sqrt()).flatten()
            for n, w in weights.items()
        ]
    )
    expected = float(scores.mean() if statistic == "mean" else scores.median())
    found = Dlp(statistic=statistic).measure(block_of(weights, inputs))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_a_block_no_token_reached_is_unknown(statistic):
    silent = BlockView(
        index=0,
        weights={"expert": torch.ones(4, 8)},
        statistics={"expert": InputStatistics(8, needs=[])},
    )
    assert math.isnan(Dlp(statistic=statistic).measure(silent))
