"""OGAS: exact counts, the bounds, never worse than the same number from every row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blocks import statistics_of

from offline_prune.channels import channels
from offline_prune.channels.ogas import Ogas
from offline_prune.errors import InputError
from offline_prune.selection import LayerTarget, select
from offline_prune.statistics.inputs import InputStatistics


def layer(seed, *, rows=24, columns=40):
    """Return (weight, Wanda's scores, statistics, inputs) with uneven rows."""
    generator = torch.Generator().manual_seed(seed)
    loud = torch.randn(rows, 1, generator=generator).exp()
    weight = torch.randn(rows, columns, generator=generator) * loud
    inputs = torch.randn(64, columns, generator=generator)
    inputs *= torch.randn(columns, generator=generator).exp()
    # Some rows answer to one rare direction: peaks.
    weight[: rows // 3] += 4 * inputs[5] / inputs[5].norm()
    statistics = statistics_of(inputs[:30], inputs[30:])
    return weight, weight.abs() * statistics.norm, statistics, inputs


def output_error(weight, scores, inputs, rows, *, normalised=False):
    """Sum the rows' errors one by one, removing the lowest scores by sorting."""
    total = 0.0
    for w, s, count in zip(weight, scores, rows.tolist(), strict=True):
        lowest = sorted(range(len(w)), key=lambda j: (float(s[j]), -j))[:count]
        lost = inputs[:, lowest].double() @ w[lowest].double()
        energy = float((inputs.double() @ w.double()).square().sum())
        total += float(lost.square().sum()) / (energy if normalised else 1.0)
    return total


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("normalised", [False, True])
def test_errors_are_those_of_the_pruned_layer_and_never_worse(seed, normalised):
    weight, scores, statistics, inputs = layer(seed)
    found = Ogas(row_normalised=normalised).search(
        weight, scores, statistics, removed=500
    )
    keep = select(scores, LayerTarget.count(500), compare="row")
    options = {"normalised": normalised}
    uniform = output_error(weight, scores, inputs, (~keep).sum(1), **options)
    chosen = output_error(weight, scores, inputs, found.rows, **options)
    assert found.uniform_error == pytest.approx(uniform, rel=1e-4)
    assert found.error == pytest.approx(chosen, rel=1e-4)
    assert found.error <= found.uniform_error
    assert found.evaluations <= 12 + 3
    if found.kappa is not None:
        assert -4 <= found.kappa <= 4


def test_some_layer_is_better_than_uniform():
    gains = [Ogas().search(*layer(seed)[:3], removed=500) for seed in range(6)]
    better = [c for c in gains if c.kappa is not None]
    assert better
    assert all(c.error < c.uniform_error for c in better)
    assert all(len(set(c.rows.tolist())) > 1 for c in better)


@given(st.integers(0, 3), st.integers(0, 24 * 40), st.floats(0, 0.6))
@settings(deadline=None, max_examples=40)
def test_counts_are_exact_and_bounded(seed, removed, amplitude):
    weight, scores, statistics, _ = layer(seed)
    rows = Ogas(amplitude=amplitude).row_targets(
        weight, scores, statistics, removed=removed
    )
    assert rows.dtype == torch.int64
    assert int(rows.sum()) == removed
    share = removed / weight.numel()
    lower = max(0.0, share - 0.3) * 40
    upper = max(share, min(0.98, share + 0.3)) * 40
    assert all(lower - 1 < count < upper + 1 for count in rows.tolist())


def test_without_amplitude_it_is_wanda_bit_for_bit():
    weight, scores, statistics, _ = layer(0)
    for removed in (0, 1, 333, 480, 960):
        rows = Ogas(amplitude=0.0).row_targets(
            weight, scores, statistics, removed=removed
        )
        wanda = select(scores, LayerTarget.count(removed), compare="row")
        assert torch.equal(
            select(scores, LayerTarget.per_row(rows), compare="row"), wanda
        )


def test_ties_are_broken_as_selection_breaks_them():
    weight, _, statistics, inputs = layer(1)
    scores = (weight.abs() > 1).float()  # two values only
    found = Ogas().search(weight, scores, statistics, removed=500)
    keep = select(scores, LayerTarget.per_row(found.rows), compare="row")
    lost = inputs @ (weight * ~keep).T
    assert found.error == pytest.approx(float(lost.square().sum()), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_result_is_repeatable(seed):
    weight, scores, statistics, _ = layer(seed)
    first = Ogas().row_targets(weight, scores, statistics, removed=321)
    again = Ogas().row_targets(weight, scores, statistics, removed=321)
    assert torch.equal(first, again)


def test_without_tokens_rows_lose_the_same():
    weight, scores, _, _ = layer(0)
    for statistics in (None, InputStatistics(40, needs=Ogas.needs)):
        found = Ogas().search(weight, scores, statistics, removed=240)
        assert found.rows.tolist() == [10] * 24
        assert found.kappa is None


def test_fewer_sampled_tokens_can_be_used():
    weight, scores, statistics, inputs = layer(2)
    found = Ogas(sample_tokens=16).search(weight, scores, statistics, removed=500)
    few = inputs[::4]
    assert found.error == pytest.approx(
        output_error(weight, scores, few, found.rows), rel=1e-4
    )


def test_registry_and_options():
    assert list(channels) == ["ogas"]
    assert channels.get("ogas") is Ogas
    assert "our formulation" in Ogas.paper
    with pytest.raises(InputError, match="Did you mean: amplitude"):
        Ogas.parse({"amplitud": 0.1}, source="ogas")
