"""Layers and inputs that are small enough to be fitted by hand."""

from __future__ import annotations

import pytest
import torch

from nmsparse import parse_pattern
from nmsparse.ops.online import Online
from offline_prune.online.fit.evidence import Evidence, Inputs
from offline_prune.online.fit.parts import neutral

PATTERN = parse_pattern("2:4")


class Case:
    """A random layer; two windows of inputs with a mean and a loud first token."""

    def __init__(self, outputs, inputs, *, tokens=12, seed=0, dtype=torch.float32):
        g = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(outputs, inputs, generator=g).to(dtype)
        self.bias = torch.randn(outputs, generator=g).to(dtype)
        centre = torch.randn(inputs, generator=g)
        self.xs = []
        for _ in range(2):
            x = torch.randn(tokens, inputs, generator=g) + centre
            x[0] *= 1000
            self.xs.append(x.to(dtype))

    def evidence(self, *, bias=True, clip=4.0, wanted=None, **arguments):
        others = [None] * len(self.xs) if wanted is None else wanted
        return Evidence(
            self.weight,
            self.bias if bias else None,
            windows=[Inputs(x, y) for x, y in zip(self.xs, others, strict=True)],
            clip=clip,
            **arguments,
        )

    def online(self, *mitigation, rank=16):
        return neutral(Online(PATTERN, "magnitude", mitigation), self.weight, rank=rank)

    def rows(self):
        """Return all tokens but the first of each window, and their weights."""
        x = torch.cat([x[1:] for x in self.xs])
        weights = []
        for window in self.xs:
            dense = (window @ self.weight.T + self.bias)[1:]
            inverse = 1 / dense.square().sum(1)
            weights.append(inverse.minimum(4 * inverse.median()))
        return x, torch.cat(weights)

    def kept(self, x):
        """Return the two largest of every four, by sorting."""
        groups = x.unflatten(1, (-1, 4))
        top = groups.abs().argsort(-1, descending=True)[..., :2]
        keep = torch.zeros_like(groups).scatter(-1, top, 1)
        return (groups * keep).flatten(1)


@pytest.fixture
def case():
    return Case
