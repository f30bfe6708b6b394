"""WINA: column norms, over all rows of a fused weight."""

from __future__ import annotations

import torch

from nmsparse.criteria.wina import wina
from nmsparse.ops.sparsify import Correction, sparsify
from nmsparse.pattern import NMPattern


def test_hand_computed():
    weight = torch.tensor([[3.0, 0.0, 1.0, 1.0], [4.0, 2.0, 0.0, 1.0]])
    factor = wina.factor(weight)
    torch.testing.assert_close(factor, torch.tensor([5.0, 2.0, 1.0, 2.0**0.5]))
    # Scores 5, 4, 3, 1.5 * sqrt(2): the largest value is not kept.
    x = torch.tensor([[1.0, 2.0, -3.0, 1.5]])
    correction = Correction(factor=factor)
    found = sparsify(x, NMPattern(2, 4), criterion="wina", correction=correction)
    assert found.tolist() == [[1.0, 2.0, 0.0, 0.0]]


def test_squares_of_row_shards_add_up():
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    squares = [wina.factor(part).square() for part in weight.split(5)]
    torch.testing.assert_close(sum(squares).sqrt(), wina.factor(weight))
