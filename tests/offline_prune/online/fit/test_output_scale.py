"""LS against a one-dimensional regression for each output."""

from __future__ import annotations

import pytest
import torch

from offline_prune.online.fit import output_scale
from offline_prune.online.fit.options import FitOptions


def fit(made, *mitigation, ridge=0.0, **arguments):
    online = made.online("ls", *mitigation)
    options = FitOptions(ridge=ridge)
    evidence = made.evidence(**arguments)
    return output_scale.fit(evidence, online, options=options)["output_scale"]


@pytest.mark.parametrize("variance", [False, True])
def test_it_is_the_weighted_regression_of_the_dense_output_on_the_product(
    case, variance
):
    made = case(5, 8)
    x, weights = made.rows()
    v = made.kept(x)
    z = v @ made.weight.T
    if variance:
        z *= (x.var(1, correction=0) / v.var(1, correction=0)).sqrt()[:, None]
    dense = x @ made.weight.T
    found = fit(made, *(["var"] if variance else []))
    root = weights.sqrt()
    for output in range(5):
        left, right = root * z[:, output], root * dense[:, output]
        slope = torch.linalg.lstsq(left[:, None], right[:, None]).solution.item()
        assert float(found[output]) == pytest.approx(slope - 1, rel=1e-3, abs=1e-4)
    assert found.abs().max() > 0.02, "the test could not fail"


def test_the_ridge_pulls_towards_no_scale(case):
    made = case(5, 8)
    free, pulled = fit(made), fit(made, ridge=1.0)
    assert (pulled.abs() < free.abs()).all()
    assert (pulled.sign() == free.sign()).all()
    assert fit(made, ridge=1e9).abs().max() < 1e-6


def test_an_output_that_is_always_zero_gets_none(case):
    made = case(5, 8)
    made.weight[2] = 0
    assert float(fit(made)[2]) == 0


def test_the_dense_stream_may_be_the_target(case):
    made = case(5, 8)
    # What is wanted is the sparse input twice over, so the product times two.
    wanted = [2 * made.kept(x) for x in made.xs]
    found = fit(made, bias=False, wanted=wanted)
    torch.testing.assert_close(found, torch.ones(5), rtol=1e-4, atol=1e-4)
