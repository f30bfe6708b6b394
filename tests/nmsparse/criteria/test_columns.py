"""Sums over rows: in pieces, and of shards."""

from __future__ import annotations

import torch

from nmsparse.criteria.columns import column_squares


def test_pieces_add_up():
    weight = torch.randn(2500, 3, generator=torch.Generator().manual_seed(0))
    energy = torch.rand(2500, generator=torch.Generator().manual_seed(1))
    plain = (weight.double() - 0.5).square()
    found = column_squares(weight, center=0.5)
    torch.testing.assert_close(found, plain.sum(0))
    found = column_squares(weight, center=0.5, row_weight=energy)
    torch.testing.assert_close(found, (plain * energy[:, None].double()).sum(0))
    assert torch.equal(column_squares(weight[:0]), torch.zeros(3).double())
