"""``Parameters``: shapes and values are verified, and names are told."""

from __future__ import annotations

import pytest
import torch
from support.online_cases import make_parameters

from nmsparse.parameters import PARAMETERS, Parameters

ALL = ("l_pts", "ls", "output_shift", "r_sparse")


def everything(**changes):
    parts = dict(make_parameters(ALL).items())
    parts |= {"factor": torch.rand(32), "channel_groups": torch.arange(32).flip(0)}
    return Parameters(**(parts | changes))


def test_what_fits_passes():
    assert {name for name, _ in everything().items()} == set(PARAMETERS)
    everything().check(32, 24)
    Parameters().check(32, 24)
    for dtype in (torch.bfloat16, torch.float16):
        everything().to("cpu", dtype=dtype).check(32, 24)


def test_to_converts_only_the_low_rank_matrices():
    found = everything().to("cpu", dtype=torch.bfloat16)
    changed = {n for n, tensor in found.items() if tensor.dtype is torch.bfloat16}
    assert changed == {"low_rank_in", "low_rank_out"}
    assert torch.equal(found.channel_groups, everything().channel_groups)


@pytest.mark.parametrize(("name", "kind"), PARAMETERS.items(), ids=list(PARAMETERS))
def test_another_shape_names_the_part(name, kind):
    full = dict(everything().items())[name]
    wrong = {
        "low_rank_in": torch.ones(3, 31),
        "low_rank_out": torch.ones(24, 4),
        "channel_groups": torch.arange(31),
    }.get(name, full[:-1])
    with pytest.raises(ValueError, match=rf"{name} has shape \[.*Expected \[.*model"):
        everything(**{name: wrong}).check(32, 24)
    with pytest.raises(ValueError, match=rf"{name} is .*Expected .*{kind.shape[0]}"):
        everything(**{name: full[None]}).check(32, 24)


@pytest.mark.parametrize("name", PARAMETERS)
def test_another_dtype_names_the_part(name):
    full = dict(everything().items())[name]
    with pytest.raises(ValueError, match=rf"{name} is float64"):
        everything(**{name: full.double()}).check(32, 24)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", [n for n in PARAMETERS if n != "channel_groups"])
def test_numbers_must_be_finite(name, value):
    full = dict(everything().items())[name].clone()
    full.view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity"):
        everything(**{name: full}).check(32, 24)


def test_a_factor_is_not_negative():
    with pytest.raises(ValueError, match="factor holds a negative number"):
        everything(factor=-torch.ones(32)).check(32, 24)


@pytest.mark.parametrize(
    "groups",
    [torch.zeros(32).long(), torch.arange(1, 33), torch.arange(-1, 31)],
    ids=["constant", "from 1", "from -1"],
)
def test_channel_groups_are_a_permutation(groups):
    with pytest.raises(ValueError, match=r"channel_groups is no permutation\. .*31"):
        everything(channel_groups=groups).check(32, 24)


@pytest.mark.parametrize("name", ["low_rank_in", "low_rank_out"])
def test_low_rank_comes_in_pairs(name):
    with pytest.raises(ValueError, match=r"Only one of .*Expected both"):
        everything(**{name: None}).check(32, 24)
