"""S-PTS: one number."""

from __future__ import annotations

import torch

from offline_prune.online.fit import s_pts
from offline_prune.online.fit.options import FitOptions


def test_it_is_the_weighted_mean_of_the_means_of_tokens(case):
    made = case(5, 8)
    online = made.online("s_pts")
    found = s_pts.fit(made.evidence(), online, options=FitOptions())["channel_shift"]
    x, weights = made.rows()
    expected = (weights * x.mean(1)).sum() / weights.sum()
    torch.testing.assert_close(found, expected.expand(8))
    assert abs(float(expected)) > 0.05, "the test could not fail"


def test_of_tokens_that_weigh_the_same_it_is_the_plain_mean(case):
    made = case(8, 8)
    made.weight, made.bias = torch.eye(8), torch.zeros(8)
    # Signs alone: every output has the same norm.
    made.xs = [torch.tensor([[1.0, 1, 1, 1, 1, 1, -1, -1]] * 3) for _ in range(2)]
    made.xs[0][2] *= -1
    found = s_pts.fit(made.evidence(), made.online("s_pts"), options=FitOptions())
    # Position 0 aside: means 0.5, -0.5, 0.5, 0.5.
    torch.testing.assert_close(found["channel_shift"], torch.full((8,), 0.25))
