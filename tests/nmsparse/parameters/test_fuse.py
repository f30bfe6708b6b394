"""Parameters of fused layers: the input's are shared, the outputs' concatenated."""

from __future__ import annotations

import pytest
import torch
from support.online_cases import make_parameters

from nmsparse.parameters import fuse

ALL = ("l_pts", "ls", "output_shift", "r_sparse")
NAMES = ("q_proj", "k_proj", "v_proj")
SHARED = ("factor", "channel_shift", "low_rank_in", "channel_groups")


def part(outputs, seed):
    shared = dict(make_parameters(ALL, outputs=outputs, seed=1).items())
    own = dict(make_parameters(ALL, outputs=outputs, seed=seed).items())
    found = {n: (shared if n in SHARED else own)[n].clone() for n in own}
    return found | {"factor": torch.ones(32), "channel_groups": torch.arange(32)}


def parts():
    return [part(16, 10), part(4, 20), part(4, 30)]


def test_join():
    given = parts()
    found = fuse(given, names=NAMES)
    found.check(32, 24)
    for name, tensor in found.items():
        whole = (
            given[0][name]
            if name in SHARED
            else torch.cat([each[name] for each in given])
        )
        assert torch.equal(tensor, whole)


def test_one_part_and_none():
    one = fuse([part(16, 1)])
    one.check(32, 16)
    assert list(fuse([]).items()) == []
    assert list(fuse([{}, {}]).items()) == []


@pytest.mark.parametrize("name", SHARED)
def test_parts_that_differ_are_refused(name):
    given = parts()
    given[2][name] = given[2][name].clone()
    given[2][name].view(-1)[:2] = given[2][name].view(-1)[:2].flip(0) + (
        0 if name == "channel_groups" else 0.5
    )
    with pytest.raises(ValueError, match=f"{name} differs between q_proj and v_proj"):
        fuse(given, names=NAMES)
    with pytest.raises(ValueError, match=f"{name} differs between part 0 and part 2"):
        fuse(given)


def test_parts_with_other_parameters_are_refused():
    given = parts()
    del given[1]["output_scale"]
    with pytest.raises(ValueError, match=r"q_proj has .*output_scale.* k_proj has"):
        fuse(given, names=NAMES)
    with pytest.raises(ValueError, match=r"q_proj has .* k_proj has none"):
        fuse([part(16, 1), {}], names=NAMES)


def test_another_rank_is_refused():
    given = parts()
    given[1]["low_rank_out"] = torch.ones(4, 5)
    with pytest.raises(ValueError, match=r"low_rank_out of q_proj, .* \[4, 5\]"):
        fuse(given, names=NAMES)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"k_proj: Unknown parameter 'factr'.*factor"):
        fuse([part(16, 1), part(4, 1) | {"factr": torch.ones(32)}], names=NAMES)
