"""Output shift: nothing is left on average."""

from __future__ import annotations

import torch

from offline_prune.online.fit import output_shift
from offline_prune.online.fit.options import FitOptions
from offline_prune.online.fit.parts import with_tensors


def fit(made, online):
    return output_shift.fit(made.evidence(), online, options=FitOptions())


def test_it_is_the_weighted_mean_of_what_is_missing(case):
    made = case(5, 8)
    x, weights = made.rows()
    missing = (x - made.kept(x)) @ made.weight.T
    expected = (weights[:, None] * missing).sum(0) / weights.sum()
    found = fit(made, made.online("output_shift"))["output_shift"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_after_it_the_weighted_mean_residual_is_zero(case):
    made = case(6, 16)
    online = made.online("d_pts", "var", "ls", "output_shift")
    scale = torch.linspace(-0.2, 0.3, 6)
    online = with_tensors(online, {"output_scale": scale})

    def mean(online):
        seen = list(made.evidence().seen(online))
        total = sum(s.weights @ s.left for s in seen)
        return total / sum(s.weights.sum() for s in seen)

    assert mean(online).abs().max() > 0.1, "the test could not fail"
    fitted = with_tensors(online, fit(made, online))
    torch.testing.assert_close(mean(fitted), torch.zeros(6), rtol=0, atol=1e-5)


def test_a_massive_token_does_not_rule(case):
    made = case(5, 8)
    online = made.online("output_shift")
    before = fit(made, online)["output_shift"]
    made.xs[1][5] *= 1000
    assert (fit(made, online)["output_shift"] - before).abs().max() < 0.5
    x = torch.cat([x[1:] for x in made.xs])
    plain = ((x - made.kept(x)) @ made.weight.T).mean(0)
    assert (plain - before).abs().max() > 5, "the test could not fail"
