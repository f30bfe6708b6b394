"""Layers with criteria and mitigations for tests, and the result in float64."""

from __future__ import annotations

import itertools

import torch
from support.oracle import keep_of_row

from nmsparse.criteria import criteria
from nmsparse.mitigation import mitigations
from nmsparse.ops.online import Online, prepare
from nmsparse.parameters import Parameters
from nmsparse.pattern import Pattern, parse_pattern

SHIFTS = ("", "d_pts", "d_pts_median", "s_pts", "l_pts")
OTHERS = ("var", "ls", "output_shift", "r_sparse")
CRITERIA = tuple(criteria)
# Every combination of one shift or none with any of the others.
MITIGATIONS = tuple(
    tuple(name for name in (shift, *others) if name)
    for shift in SHIFTS
    for size in range(len(OTHERS) + 1)
    for others in itertools.combinations(OTHERS, size)
)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_parameters(
    mitigation=(), *, inputs=32, outputs=24, rank=3, zero=False, seed=7, **more
) -> Parameters:
    """Return random (or zero) tensors for the mitigations, and what else is given."""
    shapes = {
        "channel_shift": (inputs,),
        "output_scale": (outputs,),
        "output_shift": (outputs,),
        "low_rank_in": (rank, inputs),
        "low_rank_out": (outputs, rank),
    }
    names = {p for name in mitigation for p in mitigations.get(name).parameters}
    made = {
        name: random(*shapes[name], seed=seed + place) * (0 if zero else 0.3)
        for place, name in enumerate(shapes)
        if name in names
    }
    return Parameters(**made, **more)


def make_online(
    pattern="8:16",
    criterion="magnitude",
    mitigation=(),
    *,
    weight=None,
    zero=False,
    groups=False,
    seed=7,
) -> Online:
    """Return a layer's settings; with a weight they fit it and have its factor."""
    outputs, inputs = (24, 32) if weight is None else weight.shape
    more = {}
    if criteria.get(criterion).needs == "calibration":
        more["factor"] = random(inputs, seed=seed + 20).abs()
    if groups:
        generator = torch.Generator().manual_seed(seed + 21)
        more["channel_groups"] = torch.randperm(inputs, generator=generator)
    parameters = make_parameters(
        mitigation, inputs=inputs, outputs=outputs, zero=zero, seed=seed, **more
    )
    online = Online(parse_pattern(pattern), criterion, tuple(mitigation), parameters)
    return online if weight is None else prepare(weight, online)


def keep_of(scores: torch.Tensor, pattern: Pattern, groups=None) -> torch.Tensor:
    """Return what stays, selected in plain Python."""
    order = torch.arange(scores.shape[1]) if groups is None else groups
    kept, group = pattern.group(scores.shape[1])
    rows = [keep_of_row(row, kept, group) for row in scores[:, order].tolist()]
    keep = torch.zeros(scores.shape, dtype=torch.bool)
    keep[:, order] = torch.tensor(rows, dtype=torch.bool).view(scores.shape)
    return keep


def exact_online(x, weight, bias, online: Online) -> torch.Tensor:
    """Return the result in float64, from a dense activation: shifts put back, scaled.

    Written from the definitions of the methods, not from the algebra of the kernels.
    Choices are made in float32, as the contract says.
    """
    given = online.parameters
    shift = torch.zeros_like(x, dtype=torch.float32)
    if "d_pts" in online.mitigation:
        shift = shift + x.double().mean(1, keepdim=True).float()
    if "d_pts_median" in online.mitigation:
        middle = x.float().sort(dim=1).values[:, (x.shape[1] - 1) // 2]
        shift = shift + middle[:, None]
    if given.channel_shift is not None:
        shift = shift + given.channel_shift
    u = x.float() - shift
    factor = given.factor
    if online.criterion == "clact":
        factor = u.square().sum(0).sqrt()
    keep = keep_of(u.abs() * (1 if factor is None else factor), online.pattern,
                   given.channel_groups)  # fmt: skip
    u, shift, wide = u.double(), shift.double(), weight.double()
    v = torch.where(keep, u, 0)
    scale = torch.ones(len(x), 1, dtype=torch.float64)
    if "var" in online.mitigation:
        ratio = u.var(dim=1) / v.var(dim=1)
        scale = torch.where(ratio.isfinite() & (ratio > 0), ratio.sqrt(), 1)[:, None]
    diagonal = torch.ones(len(weight), dtype=torch.float64)
    if given.output_scale is not None:
        diagonal = 1 + given.output_scale.double()
    # Dense activations: the scaled part and what was subtracted.
    y = (scale * v) @ wide.t() * diagonal + shift @ wide.t()
    if given.output_shift is not None:
        y = y + given.output_shift.double()
    if given.low_rank_in is not None:
        y = (
            y
            + (u - v) @ given.low_rank_in.double().t() @ given.low_rank_out.double().t()
        )
    return y if bias is None else y + bias.double()
