"""Energy, PAPR and the curvature map against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offline_prune.channels.protection import curvature, energy, papr, protection

OUTPUTS = torch.tensor(
    [[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 1.0, 0.0], [2.0, 1.0, 0.0]]
)
GRID = torch.linspace(0, 1, 33, dtype=torch.float64)


def test_energy_and_papr_by_hand():
    # One peak, constant magnitude, silence.
    assert energy(OUTPUTS).tolist() == [2.0, 2.0, 0.0]
    assert papr(OUTPUTS).tolist() == [4.0, 1.0, 1.0]


@given(st.floats(1e-3, 1e3))
def test_papr_ignores_scale(factor):
    outputs = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    ratios = papr(outputs)
    torch.testing.assert_close(papr(outputs * factor), ratios, rtol=1e-5, atol=0.0)
    assert bool((ratios >= 1).all())
    assert bool((ratios <= 20).all())


def test_of_equal_energy_the_peaky_channel_is_protected():
    found = protection(energy(OUTPUTS), papr(OUTPUTS), 0.5)
    assert found.tolist() == [1.0, 0.0, 0.0]


def test_protection_by_hand():
    energies = torch.tensor([1.0, math.e, math.e**2], dtype=torch.float64)
    ratios = torch.tensor([math.e**4, 1.0, math.e], dtype=torch.float64)
    # minmax of logarithms: (0, .5, 1) and (1, 0, .25).
    for weight, mixed in [
        (1.0, [0.0, 0.5, 1.0]),
        (0.0, [1.0, 0.0, 0.25]),
        (0.5, [0.5, 0.25, 0.625]),
    ]:
        low, high = min(mixed), max(mixed)
        expected = [(value - low) / (high - low) for value in mixed]
        assert protection(energies, ratios, weight).tolist() == pytest.approx(expected)


def test_channels_that_are_alike_get_nothing():
    same = torch.full((3,), 2.0)
    assert protection(same, same, 0.5).tolist() == [0.0] * 3
    assert protection(torch.zeros(3), torch.ones(3), 0.5).tolist() == [0.0] * 3


def test_a_silent_channel_does_not_fill_the_range():
    energies = torch.tensor([1.0, 0.0, 4.0, 2.0])
    ratios = torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert protection(energies, ratios, 1.0).tolist() == pytest.approx([0, 0, 1, 0.5])


@pytest.mark.parametrize(
    ("kappa", "expected"),
    [(3.0, [0.5553, 0.8176, 0.9415]), (-3.0, [0.0585, 0.1824, 0.4447])],
)
def test_curvature_by_hand(kappa, expected):
    position = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    assert curvature(position, kappa).tolist() == pytest.approx(expected, abs=5e-5)


@given(st.floats(-50, 50))
def test_curvature_is_a_monotone_map_of_the_unit_interval(kappa):
    bent = curvature(GRID, kappa)
    assert float(bent[0]) == 0.0
    assert float(bent[-1]) == pytest.approx(1.0)
    assert bool((bent.diff() >= 0).all())
    # Concave above zero, convex below; mirrored by the sign.
    torch.testing.assert_close(curvature(1 - GRID, -kappa), 1 - bent)


@pytest.mark.parametrize("kappa", [0.0, 1e-12, 1e-8, -1e-7])
def test_curvature_is_continuous_at_zero(kappa):
    torch.testing.assert_close(curvature(GRID, kappa), GRID, rtol=0, atol=1e-7)
