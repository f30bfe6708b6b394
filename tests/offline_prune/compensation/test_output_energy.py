"""Output energy: variances are restored, and the gate knows when that helps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.input_statistics import gaussian, statistics_of

from offline_prune.compensation.least_squares import LeastSquares
from offline_prune.compensation.output_energy import OutputEnergy

WIDE = {"low": 0.0, "high": 1e9}
W, WHAT = torch.tensor([[3.0, 1.0]]), torch.tensor([[3.0, 0.0]])


def moment_of(off_diagonal):
    return torch.tensor([[1.0, off_diagonal], [off_diagonal, 1.0]])


def relative_error(scale):
    """Return the error of W against scaled WHAT with C12 = 0.5, by E = 13."""
    return (13 - 2 * scale * 10.5 + scale**2 * 9) / 13


@pytest.mark.parametrize("gate", [True, False])
def test_closed_form(gate):
    (scale,) = OutputEnergy(gate=gate).scales(W, WHAT, moment_of(0.5)).tolist()
    assert 1 / scale == pytest.approx(0.832, abs=1e-3)
    # Unscaled, what is missing is (0, 1): an error of exactly 1.
    assert 13 * relative_error(1.0) == pytest.approx(1.0)
    assert 13 * relative_error(scale) == pytest.approx(0.761, abs=1e-3)


def test_uncorrelated_inputs_close_the_gate():
    method = OutputEnergy(gate=False)
    (scale,) = method.scales(W, WHAT, moment_of(0.0)).tolist()
    assert scale == pytest.approx((10 / 9) ** 0.5)
    assert 10 - 2 * scale * 9 + scale**2 * 9 == pytest.approx(1.0263, abs=1e-4)
    assert OutputEnergy().scales(W, WHAT, moment_of(0.0)).tolist() == [1.0]


@pytest.mark.parametrize("centred", [False, True])
def test_energies_of_outputs_are_restored(centred):
    dense, inputs = gaussian(12, 32)
    keep = dense.abs() > 0.9
    pruned = torch.where(keep, dense, 0.0)
    method = OutputEnergy(gate=False, centred=centred, **WIDE)
    found = method.apply(dense, pruned, keep, statistics_of(*inputs))
    x = torch.cat(inputs).double()

    def energy(weight):
        y = x @ weight.double().T
        return y.var(0) if centred else y.square().mean(0)

    torch.testing.assert_close(energy(found), energy(dense), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(energy(pruned), energy(dense), rtol=0.1)


def random_case(seed):
    """Return 16 rows, some of them removed in part, and a moment."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(16, 6, generator=generator)
    what = torch.where(torch.rand(16, 6, generator=generator) > 0.4, w, 0.0)
    mix = torch.randn(6, 6, generator=generator)
    return w, what, mix @ mix.T + 0.05 * torch.eye(6)


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_gate_opens_exactly_above_the_published_limit(seed):
    w, what, moment = random_case(seed)
    scales = OutputEnergy(**WIDE).scales(w, what, moment).tolist()
    matched = OutputEnergy(gate=False, **WIDE).scales(w, what, moment).tolist()
    c = moment.double()
    for row, scale, match in zip(range(16), scales, matched, strict=True):
        a, b = w[row].double(), what[row].double()
        energy, found, cross = (float(p @ c @ q) for p, q in ((a, a), (b, b), (a, b)))
        if found == 0:
            assert scale == match == 1.0
            continue
        k, rho = (found / energy) ** 0.5, cross / (energy * found) ** 0.5
        assert match == pytest.approx(1 / k, rel=1e-3)
        if abs(rho - (1 + k) / 2) < 1e-3 or abs(k - 1) < 1e-3:
            continue  # nothing to win or lose
        opens = rho > (1 + k) / 2 if k < 1 else rho < (1 + k) / 2
        assert scale == (match if opens else 1.0)


@given(st.integers(0, 2**32), st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=60)
def test_gated_scales_never_raise_the_error(seed, theta):
    w, what, moment = random_case(seed)
    scales = OutputEnergy(theta=theta).scales(w, what, moment)

    def error(weight):
        difference = (w - weight).double()
        return (difference @ moment.double() * difference).sum(1)

    limit = error(what) * (1 + 1e-5) + 1e-6
    assert (error(what * scales[:, None]) <= limit).all()


def test_theta_goes_from_least_squares_to_energies():
    w, what, moment = random_case(3)
    least = LeastSquares(**WIDE).scales(w, what, moment)
    match = OutputEnergy(gate=False, **WIDE).scales(w, what, moment)
    half = OutputEnergy(gate=False, theta=0.5, **WIDE).scales(w, what, moment)
    none = OutputEnergy(gate=False, theta=0.0, **WIDE).scales(w, what, moment)
    torch.testing.assert_close(none, least)
    torch.testing.assert_close(half, (least * match).sqrt())
    assert (least <= match * (1 + 1e-6)).all()


def test_scale_is_clipped():
    w = torch.tensor([[1.0, 3.0]])
    what = torch.tensor([[1.0, 0.0]])
    method = OutputEnergy(gate=False)
    assert method.scales(w, what, moment_of(0.9)).tolist() == [1.25]
    assert method.scales(what, w, moment_of(0.9)).tolist() == pytest.approx([0.8])
