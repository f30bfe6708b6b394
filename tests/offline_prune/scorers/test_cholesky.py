"""The factor of the inverse Hessian: identities, damping, dead inputs."""

from __future__ import annotations

import pytest
import torch

from offline_prune.scorers.cholesky import inverse_factor


def hessian_of(size, *, seed=0):
    x = torch.randn(4 * size, size, generator=torch.Generator().manual_seed(seed))
    return x.T @ x / size


@pytest.mark.parametrize("size", [1, 2, 37, 256, 257, 600])
def test_agrees_with_the_official_factor(size):
    hessian = hessian_of(size)
    before = hessian.clone()
    factor = inverse_factor(hessian, percdamp=0.01)
    assert torch.equal(hessian, before)
    damped = hessian.double()
    damped += 0.01 * damped.diagonal().mean() * torch.eye(size)
    # As the official code has it, in float64.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    expected = torch.linalg.cholesky(inverse, upper=True).float()
    torch.testing.assert_close(factor.upper, expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(factor.upper, factor.upper.triu())
    assert factor.percdamp == 0.01
    assert not factor.dead.any()


def test_closed_form():
    factor = inverse_factor(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), percdamp=0)
    expected = torch.tensor([[0.816497, -0.408248], [0.0, 0.707107]])
    torch.testing.assert_close(factor.upper, expected)


def test_dead_inputs_are_found_and_count_one():
    hessian = hessian_of(6)
    hessian[2], hessian[:, 2] = 0.0, 0.0
    factor = inverse_factor(hessian, percdamp=0.5)
    assert factor.dead.tolist() == [False, False, True, False, False, False]
    mean = (float(hessian.diagonal().sum()) + 1.0) / 6
    assert float(factor.upper[2, 2]) == pytest.approx((1 + 0.5 * mean) ** -0.5)
    assert (factor.upper[2, 3:] == 0).all()
    assert (factor.upper[:2, 2] == 0).all()


def test_damping_is_raised_until_it_is_enough():
    indefinite = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    factor = inverse_factor(indefinite, percdamp=0.01)
    assert factor.percdamp == pytest.approx(0.1)
    damped = indefinite + 0.1 * torch.eye(2)
    torch.testing.assert_close(factor.upper.T @ factor.upper, damped.inverse())


def test_hopeless_hessian_is_refused():
    with pytest.raises(RuntimeError, match="even with damping 10"):
        inverse_factor(torch.tensor([[1.0, 100.0], [100.0, 1.0]]), percdamp=0.01)


def test_nan_and_shape_are_refused():
    with pytest.raises(ValueError, match="1 of 4 values are not finite"):
        inverse_factor(torch.tensor([[1.0, 0.0], [0.0, float("nan")]]))
    with pytest.raises(ValueError, match=r"found shape \(2, 3\)"):
        inverse_factor(torch.ones(2, 3))
