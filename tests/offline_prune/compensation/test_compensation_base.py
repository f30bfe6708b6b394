"""What every compensation does: zeros stay, nothing to mend changes nothing."""

from __future__ import annotations

import pytest
import torch
from support.input_statistics import gaussian, statistics_of

from offline_prune.compensation import compensations
from offline_prune.errors import InputError
from offline_prune.scorers.wanda import Wanda
from offline_prune.selection import LayerTarget
from offline_prune.statistics.inputs import InputStatistics
from offline_prune.statistics.needs import Need

NAMES = list(compensations)
DATA = [name for name in NAMES if compensations.get(name)().required]
SCALES = [name for name in NAMES if name != "mean_shift"]
DENSE, INPUTS = gaussian(12, 32)
STATISTICS = statistics_of(*INPUTS)
PRUNED = Wanda().prune(DENSE, STATISTICS, LayerTarget.count(12 * 16))


def test_registry():
    assert NAMES == ["energy", "least_squares", "mean_shift", "output_energy"]
    assert DATA == ["least_squares", "mean_shift", "output_energy"]
    for name in NAMES:
        method = compensations.get(name)
        assert method.name == name
        assert method.title
        assert "our formulation" in method.paper
        assert all(field.description for field in method.model_fields.values())
        assert method.makes_bias == (name == "mean_shift")


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zero(name):
    before = PRUNED.weight.clone()
    method = compensations.get(name)()
    weight = method.apply(DENSE, PRUNED.weight, PRUNED.keep, STATISTICS)
    assert torch.equal(PRUNED.weight, before)
    assert weight.dtype is torch.float32
    assert torch.equal(weight != 0, PRUNED.keep)
    assert not weight[~PRUNED.keep].signbit().any()
    assert method.bias(DENSE, weight, STATISTICS).shape == (12,)


@pytest.mark.parametrize("name", NAMES)
def test_dense_layer_is_left_as_it_is(name):
    method, keep = compensations.get(name)(), torch.ones_like(PRUNED.keep)
    assert torch.equal(method.apply(DENSE, DENSE, keep, STATISTICS), DENSE)
    assert not method.bias(DENSE, DENSE, STATISTICS).any()


@pytest.mark.parametrize("name", DATA)
def test_layer_without_tokens_is_left_as_it_is(name):
    method, unseen = compensations.get(name)(), InputStatistics(32, needs=Need)
    weight = method.apply(DENSE, PRUNED.weight, PRUNED.keep, unseen)
    assert torch.equal(weight, PRUNED.weight)
    assert not method.bias(DENSE, weight, unseen).any()


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("statistics", [None, statistics_of(torch.ones(2, 16))])
def test_statistics_of_another_layer_are_refused(name, statistics):
    method = compensations.get(name)()

    def run():
        method.bias(DENSE, PRUNED.weight, statistics)
        method.apply(DENSE, PRUNED.weight, PRUNED.keep, statistics)

    with pytest.raises(ValueError, match=f"Compensation {name}: statistics of"):
        run()


@pytest.mark.parametrize("name", SCALES)
def test_limits_that_leave_no_room_change_nothing(name):
    method = compensations.get(name)(low=1.0, high=1.0)
    weight = method.apply(DENSE, PRUNED.weight, PRUNED.keep, STATISTICS)
    assert torch.equal(weight, PRUNED.weight)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("limits", [{"low": 1.1}, {"high": 0.9}])
def test_limits_contain_one(name, limits):
    with pytest.raises(InputError, match="should be"):
        compensations.get(name).parse(limits, source="recipe")
