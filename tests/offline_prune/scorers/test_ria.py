"""RIA against the official formula, and its sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.input_statistics import gaussian, statistics_of

from offline_prune.scorers.ria import Ria, relative_importance
from offline_prune.selection import LayerTarget
from offline_prune.statistics.needs import Need

WEIGHT, INPUTS = gaussian(9, 40)
STATISTICS = statistics_of(*INPUTS)


def official_scores(weight, sequences, a):
    size = weight.abs()
    scaler = sum(x.square().sum(0) for x in sequences) / len(sequences)
    importance = size / size.sum(0) + size / size.sum(1).reshape(-1, 1)
    return importance * (scaler.sqrt().reshape(1, -1)) ** a


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0])
def test_scores_are_the_official_ones(a):
    scores = Ria(a=a).scores(WEIGHT, STATISTICS)
    torch.testing.assert_close(scores, official_scores(WEIGHT, INPUTS, a))


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.7])
def test_agrees_with_the_official_threshold(sparsity):
    scores = official_scores(WEIGHT, INPUTS, 0.5)
    count = int(scores.numel() * sparsity)
    gone = scores <= scores.flatten().sort()[0][count]
    pruned = Ria().prune(WEIGHT, STATISTICS, LayerTarget.count(count + 1))
    assert torch.equal(~pruned.keep, gone)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.7])
def test_agrees_with_the_official_rows(sparsity):
    scores = official_scores(WEIGHT, INPUTS, 0.5)
    gone = torch.zeros(scores.shape, dtype=torch.bool)
    count = int(40 * sparsity)
    gone.scatter_(1, scores.sort(dim=-1, stable=True)[1][:, :count], True)
    pruned = Ria(compare="row").prune(WEIGHT, STATISTICS, LayerTarget.count(9 * count))
    assert torch.equal(~pruned.keep, gone)


def test_closed_form():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    importance = [[0.583333, 1.0], [1.178571, 1.238095]]
    torch.testing.assert_close(relative_importance(weight), torch.tensor(importance))
    statistics = statistics_of(torch.diag(torch.tensor([4.0, 1.0])))
    expected = [[1.166667, 1.0], [2.357143, 1.238095]]
    torch.testing.assert_close(Ria().scores(weight, statistics), torch.tensor(expected))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32))
@settings(deadline=None)
def test_shares_sum_to_rows_and_columns(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    total = float(relative_importance(weight).sum())
    assert total == pytest.approx(rows + columns, rel=1e-4)


@given(st.integers(-10, 10), st.integers(-10, 10), st.integers(0, 360))
@settings(deadline=None)
def test_scale_of_the_layer_does_not_matter(weights, inputs, count):
    scaled = statistics_of(*(x * 4.0**inputs for x in INPUTS))
    keep = Ria().prune(WEIGHT, STATISTICS, LayerTarget.count(count)).keep
    other = Ria().prune(WEIGHT * 2.0**weights, scaled, LayerTarget.count(count)).keep
    assert torch.equal(other, keep)


def test_zero_rows_and_columns_score_zero():
    weight = WEIGHT.clone()
    weight[2], weight[:, 5] = 0.0, 0.0
    scores = Ria().scores(weight, STATISTICS)
    assert scores.isfinite().all()
    assert torch.equal(scores == 0, weight == 0)
    assert torch.equal(Ria(a=0).scores(weight * 0, None), weight * 0)


def test_half_precision_scores_in_float32():
    weight = (WEIGHT * 1e-3).half()
    expected = official_scores(weight.float(), INPUTS, 0.5)
    torch.testing.assert_close(Ria().scores(weight, STATISTICS), expected)


def test_without_the_norm_no_data_is_needed():
    assert Ria().required == {Need.MOMENTS}
    assert Ria(a=0).required == set()
    assert Ria(a=0, reconstruct=True).required == {Need.GRAM}
    pruned = Ria(a=0).prune(WEIGHT, None, LayerTarget.count(100))
    expected = official_scores(WEIGHT, INPUTS, 0.0).flatten().argsort()[:100]
    assert torch.equal((~pruned.keep).flatten().nonzero()[:, 0], expected.sort()[0])
