"""Parts: order, neutral values, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nmsparse import parse_pattern
from nmsparse.mitigation import mitigations
from nmsparse.ops.online import Online, online_linear
from nmsparse.parameters import Parameters, fuse
from offline_prune.errors import InputError
from offline_prune.online.fit import parts
from offline_prune.online.fit.parts import (
    FITS,
    check_rule,
    learned_parts,
    learned_tensors,
    neutral,
    split,
)
from offline_prune.online.fused import FusedLinear

PATTERN = parse_pattern("2:4")


def test_every_learned_mitigation_has_a_fit():
    learned = {name for name in mitigations if mitigations.get(name).parameters}
    assert set(FITS) == learned


def test_the_order_is_that_of_the_fit():
    online = Online(
        PATTERN, "magnitude", ("output_shift", "var", "r_sparse", "ls", "l_pts")
    )
    assert learned_parts(online) == ["l_pts", "ls", "r_sparse", "output_shift"]


def test_neutral_is_as_if_nothing_were_learned(case):
    made = case(6, 8)
    all_of_them = ("l_pts", "var", "ls", "output_shift", "r_sparse")
    online = neutral(Online(PATTERN, "wina", all_of_them), made.weight, rank=100)
    assert online.parameters.low_rank_in.shape == (6, 8)
    assert set(learned_tensors(online)) == {
        "channel_shift",
        "output_scale",
        "output_shift",
        "low_rank_in",
        "low_rank_out",
    }
    bare = Online(PATTERN, "wina", ("var",))
    x = made.xs[0]
    found = online_linear(x, made.weight, made.bias, online)
    assert torch.equal(found, online_linear(x, made.weight, made.bias, bare))


def test_parts_of_a_layer_join_to_what_was_split():
    g = torch.Generator().manual_seed(0)
    modules = {"a.q_proj": nn.Linear(8, 6), "a.k_proj": nn.Linear(8, 2)}
    tensors = {
        "channel_shift": torch.randn(8, generator=g),
        "output_scale": torch.randn(8, generator=g),
        "low_rank_in": torch.randn(3, 8, generator=g),
        "low_rank_out": torch.randn(8, 3, generator=g),
    }
    found = split(FusedLinear("a.qk_proj", modules), tensors)
    assert list(found) == list(modules)
    assert found["a.k_proj"]["output_scale"].shape == (2,)
    joined = dict(fuse(list(found.values())).items())
    assert set(joined) == set(tensors)
    assert all(torch.equal(joined[name], tensors[name]) for name in tensors)
    pointers = [x.data_ptr() for own in found.values() for x in own.values()]
    assert len(set(pointers)) == len(pointers)


def test_rules_that_cannot_be_fitted(monkeypatch):
    shift = Parameters(channel_shift=torch.zeros(8))
    with pytest.raises(InputError, match=r"o_proj: channel_shift is given already"):
        check_rule(
            "o_proj", Online(PATTERN, "magnitude", ("l_pts",), shift), in_features=8
        )
    with pytest.raises(InputError, match=r"o_proj: .*multiple"):
        check_rule("o_proj", Online(PATTERN), in_features=10)
    with pytest.raises(InputError, match=r"both take the slot"):
        check_rule(
            "o_proj", Online(PATTERN, "magnitude", ("l_pts", "d_pts")), in_features=8
        )
    rest = {name: fit for name, fit in FITS.items() if name != "ls"}
    monkeypatch.setattr(parts, "FITS", rest)
    with pytest.raises(InputError, match=r"ls has learned parameters, and no fit"):
        check_rule("o_proj", Online(PATTERN, "magnitude", ("ls",)), in_features=8)
