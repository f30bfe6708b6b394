"""The sweep with a given selection: closed forms and identities of its loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offline_prune.scorers.reconstruction import reconstruct


def problem(rows, columns, *, seed=0, share=0.5):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator)
    hessian = mix @ mix.T / columns + 0.2 * torch.eye(columns)
    keep = torch.rand(rows, columns, generator=generator) >= share
    return weight, hessian, keep


def quadratic(difference, hessian):
    return float((difference @ hessian * difference).double().sum())


def damped(hessian, percdamp):
    return hessian + percdamp * hessian.diagonal().mean() * torch.eye(len(hessian))


def test_closed_form():
    hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    keep = torch.tensor([[False, True]])
    done = reconstruct(torch.tensor([[1.0, 3.0]]), hessian, keep, percdamp=0)
    torch.testing.assert_close(done.weight, torch.tensor([[0.0, 3.5]]))
    assert done.loss == pytest.approx(0.75)
    assert done.note is None


@given(
    st.integers(1, 6),
    st.integers(1, 24),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.01, 0.1]),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=60)
def test_loss_is_the_error_under_the_damped_hessian(rows, columns, block, damp, seed):
    weight, hessian, keep = problem(rows, columns, seed=seed)
    done = reconstruct(weight, hessian, keep, percdamp=damp, blocksize=block)
    expected = quadratic(weight - done.weight, damped(hessian, damp)) / 2
    assert done.loss == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert torch.equal(done.keep, keep)
    assert (done.weight[~keep] == 0).all()


@pytest.mark.parametrize("blocksize", [1, 5, 24, 128])
@pytest.mark.parametrize("first", [1, 6, 23])
def test_removing_the_first_inputs_leaves_their_regression(first, blocksize):
    # Then every update is seen by all that stay: exactly least squares.
    weight, hessian, keep = problem(4, 24)
    keep[:, :first], keep[:, first:] = False, True
    done = reconstruct(weight, hessian, keep, percdamp=0.01, blocksize=blocksize)
    full = damped(hessian, 0.01).double()
    gain = torch.linalg.solve(full[first:, first:], full[first:, :first])
    expected = weight[:, first:] + (weight[:, :first].double() @ gain.T).float()
    torch.testing.assert_close(done.weight[:, first:], expected, rtol=1e-3, atol=1e-4)


def test_last_column_updates_nothing():
    weight, hessian, keep = problem(4, 24)
    keep[:, :-1], keep[:, -1] = True, False
    done = reconstruct(weight, hessian, keep)
    assert torch.equal(done.weight[:, :-1], weight[:, :-1])


def test_keeping_everything_changes_nothing():
    weight, hessian, keep = problem(4, 24, share=0.0)
    done = reconstruct(weight.bfloat16(), hessian, keep)
    assert torch.equal(done.weight, weight.bfloat16().float())
    assert done.loss == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_update_lowers_the_error(seed):
    # No theorem, but it did not fail in hundreds of such problems.
    weight, hessian, keep = problem(8, 48, seed=seed)
    done = reconstruct(weight, hessian, keep)
    plain = torch.where(keep, weight, 0.0)
    updated = quadratic(weight - done.weight, hessian)
    assert updated < quadratic(weight - plain, hessian)


def test_scale_of_the_hessian_does_not_matter():
    weight, hessian, keep = problem(5, 16)
    one = reconstruct(weight, hessian, keep)
    other = reconstruct(weight, 64.0 * hessian, keep)
    torch.testing.assert_close(other.weight, one.weight)
    assert other.loss == pytest.approx(64 * one.loss, rel=1e-4)


def test_kept_weights_of_dead_inputs_keep_their_value():
    weight, hessian, keep = problem(4, 12)
    hessian[3], hessian[:, 3] = 0.0, 0.0
    keep[:, 3] = torch.tensor([True, False, True, False])
    done = reconstruct(weight, hessian, keep)
    assert torch.equal(done.weight[:, 3], torch.where(keep[:, 3], weight[:, 3], 0.0))
    others = torch.arange(12) != 3
    mean = (hessian.diagonal().sum() + 1) / 12
    full = hessian + 0.01 * mean * torch.eye(12)
    difference = (weight - done.weight)[:, others]
    expected = quadratic(difference, full[others][:, others]) / 2
    assert done.loss == pytest.approx(expected, rel=1e-4)


def test_more_damping_than_asked_for_is_told():
    hessian = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    done = reconstruct(torch.ones(1, 2), hessian, torch.tensor([[True, False]]))
    assert done.note == "damping raised from 0.01 to 0.1"


def test_what_does_not_fit_is_refused():
    weight, hessian, keep = problem(4, 12)
    with pytest.raises(ValueError, match=r"keep: found shape \(4, 11\)"):
        reconstruct(weight, hessian, keep[:, 1:])
    with pytest.raises(ValueError, match=r"a Hessian of shape \(11, 12\)"):
        reconstruct(weight, hessian[1:], keep)
    weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="1 of 48 values are not finite"):
        reconstruct(weight, hessian, keep)
