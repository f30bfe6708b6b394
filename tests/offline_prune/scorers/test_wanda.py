"""Wanda and its variant against the official code, written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.input_statistics import gaussian, statistics_of

from nmsparse.pattern import NMPattern
from offline_prune.errors import InputError
from offline_prune.scorers.wanda import Wanda
from offline_prune.selection import LayerTarget
from offline_prune.statistics.needs import Need

WEIGHT, INPUTS = gaussian(9, 40)
STATISTICS = statistics_of(*INPUTS)


def official_scores(weight, sequences):
    scaler = torch.zeros(weight.shape[1])
    for seen, x in enumerate(sequences):
        scaler *= seen / (seen + 1)
        scaler += torch.norm(x.T, p=2, dim=1) ** 2 / (seen + 1)
    return weight.abs() * scaler.sqrt()


def test_scores_are_the_official_ones():
    scores = Wanda().scores(WEIGHT, STATISTICS)
    torch.testing.assert_close(scores, official_scores(WEIGHT, INPUTS))


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.66, 0.9])
def test_agrees_with_the_official_rows(sparsity):
    count = int(40 * sparsity)
    order = official_scores(WEIGHT, INPUTS).sort(dim=-1, stable=True)[1]
    gone = torch.zeros(WEIGHT.shape, dtype=torch.bool)
    gone.scatter_(1, order[:, :count], True)
    pruned = Wanda().prune(WEIGHT, STATISTICS, LayerTarget.count(9 * count))
    assert torch.equal(~pruned.keep, gone)
    assert torch.equal(pruned.weight, WEIGHT * ~gone)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (6, 8)])
def test_agrees_with_the_official_groups(n, m):
    scores = official_scores(WEIGHT, INPUTS)
    gone = torch.zeros(WEIGHT.shape, dtype=torch.bool)
    for start in range(0, 40, m):
        part = scores[:, start : start + m]
        index = start + torch.topk(part, m - n, dim=1, largest=False)[1]
        gone.scatter_(1, index, True)
    pruned = Wanda().prune(WEIGHT, STATISTICS, LayerTarget.nm(NMPattern(n, m)))
    assert torch.equal(~pruned.keep, gone)


def test_closed_form():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    statistics = statistics_of(torch.diag(torch.tensor([4.0, 1.0])))
    scores = Wanda().scores(weight, statistics)
    assert scores.tolist() == [[4, 2], [12, 4]]
    pruned = Wanda().prune(weight, statistics, LayerTarget.count(2))
    assert pruned.weight.tolist() == [[1, 0], [3, 0]]


@given(st.lists(st.integers(-8, 8), min_size=9, max_size=9), st.integers(0, 40))
@settings(deadline=None)
def test_scale_of_a_row_does_not_matter(exponents, count):
    scales = torch.tensor([2.0**e for e in exponents])
    target = LayerTarget.count(9 * count)
    keep = Wanda().prune(WEIGHT, STATISTICS, target).keep
    scaled = Wanda().prune(WEIGHT * scales[:, None], STATISTICS, target).keep
    assert torch.equal(scaled, keep)


@given(st.lists(st.integers(-8, 8), min_size=40, max_size=40))
@settings(deadline=None, max_examples=30)
def test_scale_may_move_from_inputs_to_weights(exponents):
    scales = torch.tensor([2.0**e for e in exponents])
    moved = statistics_of(*(x / scales for x in INPUTS))
    scores = Wanda().scores(WEIGHT * scales, moved)
    torch.testing.assert_close(scores, Wanda().scores(WEIGHT, STATISTICS))


def test_equal_inputs_leave_magnitude():
    statistics = statistics_of(torch.ones(3, 40))
    order = WEIGHT.abs().argsort(dim=1)
    keep = Wanda().prune(WEIGHT, statistics, LayerTarget.count(9 * 17)).keep
    assert torch.equal((~keep).nonzero()[:, 1].view(9, -1), order[:, :17].sort()[0])


def official_variant(scores, sparsity):
    """Bisect alpha as the official code does; return what goes."""
    ordered = scores.sort(dim=-1, stable=True)[0]
    sums, total = ordered.cumsum(1), scores.sum(1)

    def given_alpha(alpha):
        below = sums <= (total * alpha).reshape(-1, 1)
        index = below.sum(1, keepdim=True) - 1
        gone = scores <= ordered.gather(1, index)
        return gone, float(gone.float().mean())

    alpha, low, high = 0.4, 0.0, 0.8
    gone, found = given_alpha(alpha)
    while abs(found - sparsity) > 0.001 and high - low >= 0.001:
        if found > sparsity:
            alpha, high = (alpha + low) / 2, alpha
        else:
            alpha, low = (alpha + high) / 2, alpha
        gone, found = given_alpha(alpha)
    return gone, alpha


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_variant_agrees_with_the_official_bisection(sparsity):
    gone, alpha = official_variant(official_scores(WEIGHT, INPUTS), sparsity)
    count = int(gone.sum())
    assert count / WEIGHT.numel() == pytest.approx(sparsity, abs=0.01)
    assert len(gone.sum(1).unique()) > 1  # rows differ, or nothing is tested
    scorer = Wanda(variant=True)
    pruned = scorer.prune(WEIGHT, STATISTICS, LayerTarget.count(count))
    assert torch.equal(~pruned.keep, gone)
    # The score is the alpha at which a weight goes.
    shares = scorer.scores(WEIGHT, STATISTICS)
    assert shares[gone].max() <= alpha * (1 + 1e-5)
    assert shares[~gone].min() > alpha * (1 - 1e-5)
    assert float(shares.max()) == pytest.approx(1.0)


def test_variant_removes_the_last_of_equal_scores_first():
    weight = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    scorer, statistics = Wanda(variant=True), statistics_of(torch.ones(1, 3))
    shares = scorer.scores(weight, statistics)
    torch.testing.assert_close(shares, torch.tensor([[1, 2 / 3, 1 / 3], [0, 0, 0]]))
    keep = scorer.prune(weight, statistics, LayerTarget.count(4)).keep
    assert keep.tolist() == [[True, True, False], [False, False, False]]


def test_variant_is_refused_where_it_means_nothing():
    with pytest.raises(InputError, match="no form for 2:4"):
        Wanda(variant=True).prune(WEIGHT, STATISTICS, LayerTarget.nm(NMPattern(2, 4)))
    with pytest.raises(ValidationError, match="contradict each other"):
        Wanda(variant=True, compare="row")


def test_reconstruction_keeps_the_selection_and_lowers_the_error():
    target = LayerTarget.count(9 * 20)
    plain = Wanda().prune(WEIGHT, STATISTICS, target)
    updated = Wanda(reconstruct=True).prune(WEIGHT, STATISTICS, target)
    assert torch.equal(updated.keep, plain.keep)
    assert torch.equal(updated.weight != 0, plain.keep)
    x = torch.cat(INPUTS)

    def error(weight):
        return float(((WEIGHT - weight) @ x.T).square().sum())

    assert error(updated.weight) < 0.9 * error(plain.weight)


def test_reconstruction_needs_the_gram_matrix():
    assert Wanda().required == {Need.MOMENTS}
    assert Wanda(reconstruct=True).required == {Need.MOMENTS, Need.GRAM}
