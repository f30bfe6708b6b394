"""The layer with a gradient is the layer without one; its gradient is right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nmsparse import parse_pattern
from nmsparse.ops.online import Constants, Online, online_linear, prepare
from nmsparse.parameters import Parameters
from offline_prune.online.emulated_layer import EmulatedLayer
from offline_prune.online.fit.differentiable import (
    DifferentiableLayer,
    differentiable_linear,
)
from offline_prune.online.fused import FusedLinear

IN, OUT, RANK = 16, 6, 3
CASES = [
    ("magnitude", ()),
    ("wina", ("d_pts", "var", "ls", "output_shift")),
    ("clact", ("l_pts", "var", "r_sparse")),
    ("amber_pruner", ("d_pts_median", "ls", "r_sparse", "output_shift")),
    ("magnitude", ("s_pts", "ls", "groups")),
]


def online_of(criterion, names, weight, *, grad=False):
    g = torch.Generator().manual_seed(3)
    made = {
        "channel_shift": torch.randn(IN, generator=g) / 2,
        "output_scale": torch.randn(OUT, generator=g) / 4,
        "output_shift": torch.randn(OUT, generator=g),
        "low_rank_in": torch.randn(RANK, IN, generator=g) / 4,
        "low_rank_out": torch.randn(OUT, RANK, generator=g) / 4,
    }
    users = {
        "l_pts": ["channel_shift"],
        "s_pts": ["channel_shift"],
        "ls": ["output_scale"],
        "output_shift": ["output_shift"],
        "r_sparse": ["low_rank_in", "low_rank_out"],
    }
    chosen = {k: made[k] for name in names for k in users.get(name, [])}
    if grad:
        chosen = {k: v.requires_grad_() for k, v in chosen.items()}
    if "groups" in names:
        chosen["channel_groups"] = torch.randperm(IN, generator=g)
    mitigation = tuple(name for name in names if name != "groups")
    pattern = parse_pattern("8:16" if "groups" not in names else "2:4")
    return prepare(weight, Online(pattern, criterion, mitigation, Parameters(**chosen)))


@pytest.fixture
def layer():
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(OUT, IN, generator=g)
    return weight, torch.randn(OUT, generator=g), torch.randn(9, IN, generator=g) + 0.5


@pytest.mark.parametrize(("criterion", "names"), CASES)
def test_it_gives_what_the_oracle_gives(layer, criterion, names):
    weight, bias, x = layer
    online = online_of(criterion, names, weight)
    row_sum = Constants.of(weight, online).row_sum
    found = differentiable_linear(x, weight, bias, online, row_sum=row_sum)
    expected = online_linear(x, weight, bias, online)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("criterion", "names"), CASES[1:])
def test_gradients_are_slopes(layer, criterion, names):
    weight, bias, x = layer
    online = online_of(criterion, names, weight, grad=True)
    row_sum = Constants.of(weight, online).row_sum
    probe = torch.randn(9, OUT, generator=torch.Generator().manual_seed(5))

    def value():
        out = differentiable_linear(x, weight, bias, online, row_sum=row_sum)
        return (out * probe).sum()

    value().backward()
    learned = [t for _, t in online.parameters.items() if t.requires_grad]
    assert learned
    for tensor in learned:
        way = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(6))
        # Small, so that nothing else is chosen.
        step = 2e-4
        with torch.no_grad():
            tensor += step * way
            above = value()
            tensor -= 2 * step * way
            below = value()
            tensor += step * way
        slope = float(above - below) / (2 * step)
        expected = float((tensor.grad * way).sum())
        assert slope == pytest.approx(expected, rel=0.03, abs=0.05)


def test_the_gradient_flows_through_what_is_kept(layer):
    weight, _, x = layer
    x = x.clone().requires_grad_()
    online = Online(parse_pattern("2:4"))
    differentiable_linear(x, weight, None, online, row_sum=None).sum().backward()
    groups = x.detach().unflatten(1, (-1, 4)).abs()
    keep = (groups >= groups.sort(-1).values[..., 2:3]).flatten(1)
    assert torch.equal(x.grad != 0, keep)


def parts(sizes=(4, 2), *, bias=True):
    torch.manual_seed(2)
    modules = {f"p{i}": nn.Linear(IN, size, bias=bias) for i, size in enumerate(sizes)}
    for module in modules.values():
        module.requires_grad_(False)
    return FusedLinear("fused", modules)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("criterion", "names"), CASES)
def test_it_takes_the_place_of_the_emulation(criterion, names, first):
    fused = parts()
    online = online_of(criterion, names, fused.weight())
    x = torch.randn(1, 7, IN, generator=torch.Generator().manual_seed(4))

    def rows(name, count):
        return torch.arange(count) > 0 if first else None

    def outputs():
        return [module(x) for module in fused.parts.values()]

    dense = outputs()
    emulated = EmulatedLayer(fused, online, rows)
    expected = outputs()
    layer = DifferentiableLayer(fused, lambda: online, rows)
    found = outputs()
    again = outputs()
    layer.restore()
    for one, two, three, whole in zip(expected, found, again, dense, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)
        assert torch.equal(two, three)
        assert (one - whole)[:, 1:].abs().max() > 1e-2, "the test could not fail"
        if first:
            torch.testing.assert_close(two[:, 0], whole[:, 0])
    assert all(torch.equal(a, b) for a, b in zip(outputs(), expected, strict=True))
    emulated.restore()
    assert all("forward" not in vars(m) for m in fused.parts.values())
    assert layer.input_size == pytest.approx(float(x.square().mean(-1).sqrt().median()))
