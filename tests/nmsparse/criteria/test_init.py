"""The registry of criteria: what every one of them promises."""

from __future__ import annotations

import pytest
import torch

from nmsparse.criteria import criteria

NAMES = ("amber_pruner", "clact", "magnitude", "second_order", "wina")


def test_names():
    assert tuple(criteria) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_description(name):
    found = criteria.get(name)
    assert found.name == name
    assert found.title
    assert found.paper
    assert found.needs in ("nothing", "weight", "calibration", "batch")
    assert found.per_token == (name != "clact")


@pytest.mark.parametrize("name", NAMES)
def test_factors_are_vectors_of_float32(name):
    found = criteria.get(name)
    weight = torch.randn(5, 8, dtype=torch.bfloat16)
    if found.needs == "calibration":
        with pytest.raises(ValueError, match="Expected one in the parameters file"):
            found.factor(weight)
        return
    for factor in (found.factor(weight), found.batch_factor(weight)):
        if factor is not None:
            assert factor.dtype is torch.float32
            assert factor.shape == (8,)
            assert (factor >= 0).all()
    assert (found.factor(weight) is not None) == (found.needs == "weight")
    assert (found.batch_factor(weight) is not None) == (found.needs == "batch")
