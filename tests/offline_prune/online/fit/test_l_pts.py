"""L-PTS: a vector."""

from __future__ import annotations

import torch

from offline_prune.online.fit import l_pts
from offline_prune.online.fit.options import FitOptions


def fit(made, **options):
    online = made.online("l_pts")
    found = l_pts.fit(made.evidence(), online, options=FitOptions(**options))
    return found["channel_shift"]


def test_it_is_the_weighted_mean_of_every_channel(case):
    made = case(5, 8)
    x, weights = made.rows()
    expected = (weights[:, None] * x).sum(0) / weights.sum()
    torch.testing.assert_close(fit(made), expected)


def test_or_the_median_of_every_channel(case):
    made = case(5, 8)
    x, _ = made.rows()
    expected = x.sort(0).values[(len(x) - 1) // 2]
    torch.testing.assert_close(fit(made, shift="median"), expected, rtol=0, atol=0)


def test_a_massive_token_hardly_moves_the_mean(case):
    made = case(5, 8)
    before = fit(made)
    made.xs[1][5] *= 1000
    assert (fit(made) - before).abs().max() < 0.3
    plain = torch.cat([x[1:] for x in made.xs]).mean(0)
    assert (plain - before).abs().max() > 10, "the test could not fail"
