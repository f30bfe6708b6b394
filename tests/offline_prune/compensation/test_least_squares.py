"""Least-squares scale: the best scale there is, within its limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.input_statistics import gaussian, statistics_of

from offline_prune.compensation.least_squares import LeastSquares

WIDE = {"low": 0.0, "high": 1e9}


@pytest.mark.parametrize(("off_diagonal", "scale"), [(0.0, 1.0), (0.5, 10.5 / 9)])
def test_closed_form(off_diagonal, scale):
    moment = torch.tensor([[1.0, off_diagonal], [off_diagonal, 1.0]])
    w, what = torch.tensor([[3.0, 1.0]]), torch.tensor([[3.0, 0.0]])
    found = LeastSquares().scales(w, what, moment)
    torch.testing.assert_close(found, torch.tensor([scale]))


@pytest.mark.parametrize("centred", [False, True])
def test_is_the_regression_of_the_outputs(centred):
    dense, inputs = gaussian(12, 32)
    keep = dense.abs() > 0.9
    pruned = torch.where(keep, dense, 0.0)
    method = LeastSquares(centred=centred, **WIDE)
    found = method.apply(dense, pruned, keep, statistics_of(*inputs))
    x = torch.cat(inputs).double()
    x = x - x.mean(0) if centred else x
    y, yhat = x @ dense.double().T, x @ pruned.double().T
    slope = (y * yhat).sum(0) / yhat.square().sum(0)
    expected = pruned * slope[:, None].float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert (slope - 1).abs().max() > 0.1


@given(
    st.integers(0, 2**32),
    st.floats(0.1, 0.9),
    st.booleans(),
    st.sampled_from([{}, WIDE, {"low": 0.99, "high": 1.01}]),
)
@settings(deadline=None, max_examples=60)
def test_error_never_rises(seed, share, centred, limits):
    dense, inputs = gaussian(5, 16, seed=seed, tokens=20, sequences=2)
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(5, 16, generator=generator) > share
    pruned = torch.where(keep, dense, 0.0)
    method = LeastSquares(centred=centred, **limits)
    found = method.apply(dense, pruned, keep, statistics_of(*inputs))
    x = torch.cat(inputs).double()
    x = x - x.mean(0) if centred else x

    def error(weight):
        return (x @ (dense - weight).double().T).square().sum(0)

    assert (error(found) <= error(pruned) * (1 + 1e-5) + 1e-6).all()


def test_scale_is_clipped():
    moment = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    w = torch.tensor([[1.0, 3.0], [1.0, -3.0]])
    what = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert LeastSquares().scales(w, what, moment).tolist() == pytest.approx([1.25, 0.8])


def test_row_without_weights_is_left_as_it_is():
    dense, inputs = gaussian(3, 8)
    keep = torch.ones(3, 8, dtype=torch.bool)
    keep[1] = False
    pruned = torch.where(keep, dense, 0.0)
    found = LeastSquares().apply(dense, pruned, keep, statistics_of(*inputs))
    assert found.isfinite().all()
    assert not found[1].any()
