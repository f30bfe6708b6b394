"""Mean shift: outputs get their mean back, and the error falls by its square."""

from __future__ import annotations

import torch
from support.input_statistics import gaussian, statistics_of

from offline_prune.compensation.mean_shift import MeanShift
from offline_prune.scorers.wanda import Wanda
from offline_prune.selection import LayerTarget
from offline_prune.statistics.needs import Need

DENSE, INPUTS = gaussian(12, 32)
STATISTICS = statistics_of(*INPUTS, needs=(Need.MOMENTS,))
PRUNED = Wanda().prune(DENSE, STATISTICS, LayerTarget.count(12 * 20)).weight
X = torch.cat(INPUTS).double()


def test_means_of_outputs_are_restored():
    bias = MeanShift().bias(DENSE, PRUNED, STATISTICS)
    assert bias.dtype is torch.float32
    dense, pruned = X @ DENSE.double().T, X @ PRUNED.double().T
    assert (dense.mean(0) - pruned.mean(0)).abs().max() > 0.1
    assert (dense.mean(0) - (pruned + bias).mean(0)).abs().max() < 1e-5


def test_error_falls_by_the_square_of_the_shift():
    bias = MeanShift().bias(DENSE, PRUNED, STATISTICS).double()
    missing = X @ (DENSE - PRUNED).double().T
    fallen = missing.square().mean(0) - (missing - bias).square().mean(0)
    torch.testing.assert_close(fallen, bias.square(), rtol=1e-4, atol=1e-6)


def test_constant_input_costs_nothing():
    x = X.float()
    x[:, 9] = -2.0
    pruned = DENSE.clone()
    pruned[:, 9] = 0.0
    bias = MeanShift().bias(DENSE, pruned, statistics_of(x))
    torch.testing.assert_close(x @ pruned.T + bias, x @ DENSE.T, rtol=1e-4, atol=1e-4)
