"""CVR: the formula written out, its limits, and what its options mean."""

from __future__ import annotations

import math
import statistics as python_statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.input_statistics import gaussian, statistics_of

from offline_prune.scorers.cvr import Cvr
from offline_prune.scorers.wanda import Wanda
from offline_prune.selection import LayerTarget
from offline_prune.statistics.needs import Need

WEIGHT, INPUTS = gaussian(9, 40)
STATISTICS = statistics_of(*INPUTS)


def scale_of(channel: list[float], statistic: str) -> float:
    if statistic == "variance":
        return python_statistics.pstdev(channel)
    sizes = sorted(abs(value) for value in channel)
    if statistic == "abs_mean":
        return python_statistics.fmean(sizes)
    if statistic == "winsorized":
        limit = sizes[int(0.9 * len(sizes)) - 1]
        sizes = [min(size, limit) for size in sizes]
    return math.sqrt(python_statistics.fmean([size**2 for size in sizes]))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    "statistic", ["variance", "second_moment", "abs_mean", "winsorized"]
)
def test_agrees_with_the_formula(alpha, statistic):
    scorer = Cvr(alpha=alpha, statistic=statistic, exponent=0.75, quantile=0.9)
    scores = scorer.scores(WEIGHT, STATISTICS)
    channels = torch.cat(INPUTS).T.tolist()
    columns = WEIGHT.T.tolist()
    expected = torch.empty(WEIGHT.T.shape)
    for j, (channel, column) in enumerate(zip(channels, columns, strict=True)):
        factor = scale_of(channel, statistic) ** 0.75
        factor *= python_statistics.pvariance(column) ** (-alpha / 2)
        expected[j] = torch.tensor([abs(w) * factor for w in column])
    torch.testing.assert_close(scores, expected.T, rtol=1e-4, atol=1e-6)


def test_defaults_are_the_fourth_roots():
    weight = torch.tensor([[1.0, 2.0], [3.0, -2.0]])  # variances of columns: 1, 4
    statistics = statistics_of(torch.tensor([[16.0, 1.0], [-16.0, 3.0]]))  # 256, 1
    expected = torch.tensor([[4.0, 2 / 2**0.5], [12.0, 2 / 2**0.5]])
    torch.testing.assert_close(Cvr().scores(weight, statistics), expected)


def test_root_mean_square_without_the_weights_variance_is_wanda():
    target = LayerTarget.count(9 * 20)
    scorer = Cvr(alpha=0, exponent=1, statistic="second_moment")
    keep = scorer.prune(WEIGHT, STATISTICS, target).keep
    assert torch.equal(keep, Wanda().prune(WEIGHT, STATISTICS, target).keep)


@given(st.lists(st.integers(-4, 4), min_size=40, max_size=40))
@settings(deadline=None, max_examples=30)
def test_alpha_one_removes_the_scale_of_columns(exponents):
    scales = torch.tensor([2.0**e for e in exponents])
    scorer = Cvr(alpha=1.0, eps=1e-12)
    torch.testing.assert_close(
        scorer.scores(WEIGHT * scales, STATISTICS), scorer.scores(WEIGHT, STATISTICS)
    )


@given(st.lists(st.integers(-8, 8), min_size=9, max_size=9))
@settings(deadline=None, max_examples=30)
def test_a_rows_factor_shifts_all_of_its_scores_alike(exponents):
    # Not equal to 1: the columns' variances change with the rows.
    scales = torch.tensor([2.0**e for e in exponents])[:, None]
    ratio = Cvr().scores(WEIGHT * scales, STATISTICS) / Cvr().scores(WEIGHT, STATISTICS)
    columns = ratio / scales
    torch.testing.assert_close(columns, columns[:1].expand_as(columns))


def test_constant_input_goes_first_unless_its_mean_counts():
    x = torch.cat(INPUTS)
    x[:, 7] = 3.0
    statistics = statistics_of(x)
    assert (Cvr().scores(WEIGHT, statistics)[:, 7] == 0).all()
    keep = Cvr().prune(WEIGHT, statistics, LayerTarget.count(9)).keep
    assert torch.equal(
        ~keep, torch.zeros(9, 40).index_fill(1, torch.tensor([7]), 1) > 0
    )
    scorer = Cvr(statistic="second_moment")
    assert (scorer.scores(WEIGHT, statistics)[:, 7] > 0).all()


def test_layer_of_constant_inputs_is_pruned_by_magnitude():
    pruned = Cvr().prune(
        WEIGHT, statistics_of(torch.ones(4, 40)), LayerTarget.count(99)
    )
    assert pruned.fallback == "every score of cvr is zero: pruned by magnitude"


def test_single_output_has_no_column_variance():
    scores = Cvr().scores(WEIGHT[:1], STATISTICS)
    torch.testing.assert_close(scores, Cvr(alpha=0).scores(WEIGHT[:1], STATISTICS))


def test_winsorized_cuts_outliers_and_needs_a_sample():
    x = torch.ones(1000, 40)
    x[123, 5] = 1e4
    scorer = Cvr(statistic="winsorized", alpha=0)
    torch.testing.assert_close(scorer.scores(WEIGHT, statistics_of(x)), WEIGHT.abs())
    assert scorer.required == {Need.SAMPLE}
    assert Cvr(statistic="winsorized", reconstruct=True).required == {
        Need.SAMPLE,
        Need.GRAM,
    }
    with pytest.raises(ValueError, match="no sample of input rows"):
        scorer.scores(WEIGHT, statistics_of(x, needs=(Need.MOMENTS,)))
