"""The second-order criterion: hand-computed, and WINA where outputs are alike."""

from __future__ import annotations

import pytest
import torch

from nmsparse.criteria.second_order import factor_from
from nmsparse.criteria.wina import wina

WEIGHT = torch.tensor([[3.0, 1.0], [4.0, 0.0]])


def test_hand_computed():
    found = factor_from(WEIGHT, torch.tensor([4.0, 0.25]))
    torch.testing.assert_close(found, torch.tensor([40.0**0.5, 2.0]))


def test_equal_outputs_give_wina():
    torch.testing.assert_close(factor_from(WEIGHT, torch.ones(2)), wina.factor(WEIGHT))


def test_it_is_the_loss_of_dropping_a_channel():
    # loss = 1/2 sum F_o (delta y_o)^2 for delta y = W_k x_k.
    energy, x = torch.tensor([4.0, 0.25]), torch.tensor([0.5, -2.0])
    loss = [(energy * (WEIGHT[:, k] * x[k]).square()).sum() / 2 for k in range(2)]
    score = x.abs() * factor_from(WEIGHT, energy)
    torch.testing.assert_close(score.square() / 2, torch.stack(loss))


@pytest.mark.parametrize("energy", [torch.ones(3), torch.tensor([1.0, -1.0])], ids=str)
def test_other_energies_are_refused(energy):
    with pytest.raises(ValueError, match=r"output_energy has shape .*Expected \[2\]"):
        factor_from(WEIGHT, energy)
