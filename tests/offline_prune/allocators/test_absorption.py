"""The absorption-aware correction: worked example, budget, invariances, measurement."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_prune.allocators.absorption import (
    Absorption,
    amplification,
    drift,
    growth_corrected,
    perturb,
)
from offline_prune.budget import project
from offline_prune.errors import InputError

RATIOS = st.floats(0.05, 20.0)


@st.composite
def allocations(draw):
    """Draw (shares on the budget, amplification, sizes, sparsity)."""
    count = draw(st.integers(2, 8))

    def values(strategy):
        return draw(st.lists(strategy, min_size=count, max_size=count))

    sizes = values(st.integers(1, 10**6))
    sparsity = draw(st.floats(0.3, 0.8))
    raw = [sparsity + offset for offset in values(st.floats(-0.1, 0.1))]
    return project(raw, sizes, sparsity=sparsity), values(RATIOS), sizes, sparsity


def test_deltas_by_hand():
    assert Absorption().deltas([4.0, 1.0, 0.5, 1.0]) == pytest.approx(
        [-0.997246, 0.101366, 0.794513, 0.101366], abs=1e-6
    )


@given(st.lists(RATIOS, min_size=1, max_size=8))
def test_deltas_sum_to_zero_and_fall_with_amplification(ratios):
    found = Absorption().deltas(ratios)
    assert sum(found) == pytest.approx(0, abs=1e-9)
    ranked = [delta for _, delta in sorted(zip(ratios, found, strict=True))]
    assert ranked == sorted(ranked, reverse=True)


@given(st.lists(st.floats(0.7, 1.4), min_size=2, max_size=8), st.floats(0.8, 1.25))
def test_a_common_factor_changes_nothing(ratios, factor):
    # Between 1/3 and 3 nothing is clipped.
    scaled = [factor * r for r in ratios]
    assert Absorption().deltas(scaled) == pytest.approx(
        Absorption().deltas(ratios), abs=1e-9
    )


@given(allocations(), st.floats(0.0, 0.1))
@settings(deadline=None)
def test_budget_is_kept(allocation, strength):
    base, ratios, sizes, sparsity = allocation
    found = Absorption(strength=strength).correct(
        base, ratios, sizes=sizes, sparsity=sparsity
    )
    total = math.fsum(p * s for p, s in zip(sizes, found, strict=True))
    assert total / sum(sizes) == pytest.approx(sparsity, abs=1e-9)
    assert all(0 <= share <= 0.95 for share in found)
    # No share moves further than the strength and the shift that restores the budget.
    moves = [after - before for before, after in zip(base, found, strict=True)]
    assert max(moves) - min(moves) <= 2 * strength + 1e-9


@given(allocations())
@settings(deadline=None)
def test_without_strength_or_difference_the_allocation_stays(allocation):
    base, ratios, sizes, sparsity = allocation
    budget = {"sizes": sizes, "sparsity": sparsity}
    assert Absorption(strength=0.0).correct(base, ratios, **budget) == base
    assert Absorption().correct(base, [1.7] * len(base), **budget) == base
    nothing = [math.nan] * len(base)
    assert Absorption().correct(base, nothing, **budget) == base


def test_correction_by_hand():
    found = Absorption(strength=0.03).correct(
        [0.7] * 4, [4.0, 1.0, 0.5, 1.0], sizes=[1] * 4, sparsity=0.7
    )
    scale = 0.03 / 0.997246
    deltas = [-0.997246, 0.101366, 0.794513, 0.101366]
    assert found == pytest.approx([0.7 + scale * d for d in deltas], abs=1e-6)


def test_shares_stay_within_reach_unless_they_were_beyond():
    budget = {"sizes": [1] * 3, "sparsity": 0.5}
    found = Absorption(strength=0.5).correct([0.5] * 3, [3.0, 1.0, 0.4], **budget)
    assert min(found) == pytest.approx(0.25)
    assert max(found) == pytest.approx(0.75)
    base = [0.1, 0.5, 0.9]
    found = Absorption(strength=0.01).correct(base, [1.0, 2.0, 1.0], **budget)
    assert found == pytest.approx(base, abs=0.02)


def test_raw_shares_are_projected_first():
    correct = Absorption(strength=0.0).correct
    found = correct([0.2, 1.4], [1.0, 1.0], sizes=[1, 1], sparsity=0.7, upper=0.9)
    assert found == pytest.approx([0.5, 0.9])
    with pytest.raises(InputError, match="Sparsity"):
        correct([0.7, 0.7], [1.0, 1.0], sizes=[1, 1], sparsity=0.7, upper=0.6)
    with pytest.raises(ValueError, match="1 amplifications for 2 blocks"):
        correct([0.7, 0.7], [1.0], sizes=[1, 1], sparsity=0.7)


def test_noise_has_the_asked_size_in_random_directions():
    hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    hidden[3] = 0.0
    options = Absorption()
    moved = perturb(hidden, 0.01, options.generator(2, 5))
    found = drift(hidden, moved)
    assert math.isnan(float(found[3]))
    assert bool((moved[3] == 0).all())
    others = torch.cat([found[:3], found[4:]])
    torch.testing.assert_close(others, torch.full((49,), 0.01), rtol=1e-3, atol=0.0)
    directions = torch.nn.functional.normalize(moved - hidden, dim=-1)
    cosines = (directions @ directions.T).fill_diagonal_(0).abs()
    assert float(cosines.mean()) < 0.25  # 0.14 for 32 dimensions


def test_noise_is_the_same_again_and_different_elsewhere():
    hidden = torch.ones(4, 8)
    options = Absorption(seed=3)

    def noise(*place, draw=0):
        return perturb(hidden, 0.1, options.generator(*place, draw=draw))

    assert torch.equal(noise(1, 2), noise(1, 2))
    others = [noise(2, 1), noise(1, 3), noise(1, 2, draw=1)]
    others.append(perturb(hidden, 0.1, Absorption(seed=4).generator(1, 2)))
    assert not any(torch.equal(noise(1, 2), other) for other in others)


def test_dtype_is_kept():
    hidden = torch.randn(1, 4, 8).bfloat16()
    moved = perturb(hidden, 0.5, Absorption().generator(0, 0))
    assert moved.dtype == torch.bfloat16
    assert moved.shape == hidden.shape
    assert drift(hidden[0], moved[0]).dtype == torch.float32


def measured(network, hidden, *, eta=0.01):
    """Perturb the input of every layer of a list of functions; return r of each."""
    ratios = []
    for block in range(len(network)):
        moved = perturb(hidden, eta, Absorption().generator(block, 0))
        clean, noisy = hidden, moved
        injected = drift(clean, noisy)
        for layer in network[block + 1 :]:
            clean, noisy = layer(clean), layer(noisy)
        ratios.append(amplification(injected, drift(clean, noisy)))
        hidden = network[block + 1](hidden) if block + 1 < len(network) else hidden
    return ratios


def test_a_scaling_network_neither_amplifies_nor_absorbs():
    hidden = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    ratios = measured([lambda h: 3.0 * h] * 4, hidden)
    assert ratios == pytest.approx([1.0] * 4, rel=1e-4)
    base = [0.6, 0.7, 0.8, 0.7]
    found = Absorption().correct(base, [1.0] * 4, sizes=[1] * 4, sparsity=0.7)
    assert found == base


def test_adding_a_constant_absorbs_by_growth_alone():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.nn.functional.normalize(torch.randn(64, 16, generator=generator))
    steps = [torch.randn(64, 16, generator=generator) for _ in range(3)]
    network = [lambda h, step=step: h + step for step in steps]
    ratios = measured(network, hidden)
    assert ratios[0] < 0.8
    assert ratios[-1] == pytest.approx(1.0)
    # With one token, norms explain the ratio exactly.
    one = hidden[:1]
    network = [lambda h, step=step[:1]: h + step for step in steps]
    states = [one, network[1](one), network[2](network[1](one))]
    norms = [float(state.norm()) for state in states]
    corrected = growth_corrected(measured(network, one), norms)
    assert corrected == pytest.approx([1.0] * 3, rel=1e-3)


def test_the_median_ignores_a_massive_token():
    injected = torch.tensor([0.01, 0.01, 0.01, 0.0])
    final = torch.tensor([0.02, 0.03, 9.0, 5.0])
    assert amplification(injected, final) == pytest.approx(3.0)
    assert math.isnan(amplification(torch.zeros(2), torch.ones(2)))
