"""Power-law fits against closed forms and against the published loops."""

from __future__ import annotations

import math

import pytest
import torch

from offline_prune.allocators.heavy_tail import (
    alpha_full,
    alpha_mid,
    alpha_peak,
    hill_alpha,
    spectrum,
)

POWERS = torch.tensor([2.0**k for k in range(8)], dtype=torch.float64)


def published_alpha(eigenvalues, *, peak):
    """Loop over tails as the released code does, in Python floats."""
    values = eigenvalues.tolist()
    count = len(values)
    logs = [math.log(value) for value in values]
    lowest, highest = -math.inf, math.inf
    if peak:
        tens = [math.log10(value) for value in values]
        width = (tens[-1] - tens[0]) / 100
        bins = [0] * 100
        for value in tens:
            bins[min(99, int((value - tens[0]) / width))] += 1
        edge = 10 ** (tens[0] + bins.index(max(bins)) * width)
        # The released code takes a logarithm of the lower limit only.
        lowest, highest = math.log10(0.95 * edge), 1.5 * edge
    alphas, distances = [0.0] * (count - 1), [1.0] * (count - 1)
    for i in range(count - 1):
        if values[i] < lowest:
            continue
        if values[i] > highest:
            break
        n = count - i
        alphas[i] = 1 + n / (sum(logs[i:]) - n * logs[i])
        distances[i] = max(
            abs(1 - (values[j] / values[i]) ** (1 - alphas[i]) - (j - i) / n)
            for j in range(i, count)
        )
    return alphas[distances.index(min(distances))]


def random_spectrum(seed, *, heavy):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(60, 90, generator=generator)
    if heavy:
        weight *= torch.rand(60, 1, generator=generator) ** -0.8
    return spectrum(weight)


def test_powers_of_two():
    assert hill_alpha(POWERS, 4) == pytest.approx(1 + 4 / (6 * math.log(2)), rel=1e-12)
    assert hill_alpha(POWERS, 4) == pytest.approx(1.961797, abs=1e-6)
    assert hill_alpha(POWERS, 0) == pytest.approx(1.412199, abs=1e-6)
    assert alpha_mid(POWERS) == hill_alpha(POWERS, 4)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0])
def test_exact_pareto_quantiles(exponent):
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    values = (1 - u) ** (-1 / (exponent - 1))
    assert hill_alpha(values, 0) == pytest.approx(exponent, rel=2e-3)
    assert alpha_mid(values) == pytest.approx(exponent, rel=5e-3)
    assert alpha_full(values) == pytest.approx(exponent, rel=1e-2)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_fits_are_the_published_ones(seed, heavy):
    values = random_spectrum(seed, heavy=heavy)
    assert alpha_full(values) == pytest.approx(published_alpha(values, peak=False))
    assert alpha_peak(values) == pytest.approx(published_alpha(values, peak=True))


def test_lower_limit_of_the_peak_is_published_as_it_is():
    # Large eigenvalues: the literal limit, a logarithm, is far below the peak, so a
    # tail may begin below it; with the limit that seems meant it may not.
    values = random_spectrum(3, heavy=False) * 1e6
    assert alpha_peak(values) == pytest.approx(published_alpha(values, peak=True))
    # Small ones: the limit is negative and never binds.
    values = random_spectrum(3, heavy=False) * 1e-6
    assert alpha_peak(values) == pytest.approx(published_alpha(values, peak=True))


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40), (1, 7)])
def test_spectrum_is_that_of_singular_values(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = torch.linalg.svdvals(weight.double()).square().flip(0)
    torch.testing.assert_close(spectrum(weight), expected, rtol=1e-9, atol=0.0)


def test_spectrum_drops_zeros():
    generator = torch.Generator().manual_seed(2)
    thin = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    weight = thin @ torch.randn(5, 20, generator=generator, dtype=torch.float64)
    expected = torch.linalg.svdvals(weight)[:5].square().flip(0)
    torch.testing.assert_close(spectrum(weight), expected)
    assert spectrum(torch.zeros(4, 6)).numel() == 0


@pytest.mark.parametrize("fit", [alpha_full, alpha_mid])
@pytest.mark.parametrize("change", ["scale", "transpose", "rotate"])
def test_exponents_are_properties_of_the_shape(fit, change):
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(40, 60, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q
    changed = {
        "scale": weight * 1e-3,
        "transpose": weight.T,
        "rotate": rotation @ weight,
    }
    found = fit(spectrum(changed[change]))
    assert found == pytest.approx(fit(spectrum(weight)), rel=1e-9)


def test_peak_ignores_scale_where_its_limit_does_not_bind():
    values = random_spectrum(5, heavy=True)
    values = values / values[-1] * 0.5
    for factor in (2.0, 0.25, 1e-3):
        assert alpha_peak(values * factor) == pytest.approx(alpha_peak(values))


@pytest.mark.parametrize("fit", [alpha_full, alpha_mid, alpha_peak])
@pytest.mark.parametrize("count", [0, 1])
def test_too_few_eigenvalues_have_no_exponent(fit, count):
    assert math.isnan(fit(torch.ones(count, dtype=torch.float64)))


def test_equal_eigenvalues_have_no_tail():
    flat = torch.full((20,), 3.0, dtype=torch.float64)
    assert hill_alpha(flat, 4) == math.inf
    assert math.isnan(alpha_full(flat))
    assert math.isnan(alpha_peak(flat))
