"""Energy of weights: the worked example, energies per column and row, options."""

from __future__ import annotations

import pytest
import torch

from offline_prune.compensation.energy import Energy

DENSE = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [3.0, -2.0]])
KEEP = torch.tensor([[0, 1], [1, 0], [1, 1]], dtype=torch.bool)
PRUNED = torch.where(KEEP, DENSE, 0.0)
LARGE = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) + 0.2
WIDE = {"low": 0.0, "high": 1e9}


def by_hand(dense, pruned, keep, *, mode, columns=True, rows=True, low=0.5, high=2.0):
    """Follow the formula with lists: columns first, then rows."""
    w, what = dense.double().tolist(), pruned.double().tolist()
    stays = keep.tolist()
    lines = [[(i, j) for i in range(len(w))] for j in range(len(w[0]))] * columns
    lines += [[(i, j) for j in range(len(w[0]))] for i in range(len(w))] * rows
    for line in lines:
        mu = sum(w[i][j] for i, j in line) / len(line)
        energy = sum((w[i][j] - mu) ** 2 for i, j in line)
        found = sum((what[i][j] - mu) ** 2 for i, j in line)
        g = min(max((energy / found) ** 0.5, low), high)
        for i, j in line:
            scaled = mu + g * (what[i][j] - mu) if mode == "affine" else g * what[i][j]
            what[i][j] = scaled if stays[i][j] else 0.0
    return torch.tensor(what)


def test_example():
    found = Energy(rows=False).apply(DENSE, PRUNED, KEEP, None)
    expected = [[0.0, 2.009426], [-0.885618, 0.0], [2.885618, -2.01114]]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("mode", ["affine", "multiplicative"])
@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (1, 0), (0, 1), (0, 0)])
@pytest.mark.parametrize("limits", [{}, {"low": 0.97, "high": 1.02}])
def test_agrees_with_the_formula(mode, columns, rows, limits):
    keep = torch.rand(20, 30, generator=torch.Generator().manual_seed(1)) > 0.6
    pruned = torch.where(keep, LARGE, 0.0)
    options = {"mode": mode, "columns": bool(columns), "rows": bool(rows), **limits}
    found = Energy(**options).apply(LARGE, pruned, keep, None)
    expected = by_hand(LARGE, pruned, keep, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 1])
def test_energies_match_where_nothing_is_removed_again(dim):
    # All may move: what pruning and the limits would spoil is out of the way.
    pruned = torch.where(LARGE.abs() > 0.7, LARGE, 0.0)
    method = Energy(columns=dim == 0, rows=dim == 1, **WIDE)
    found = method.apply(LARGE, pruned, torch.ones_like(LARGE, dtype=torch.bool), None)
    mean = LARGE.mean(dim, keepdim=True)
    torch.testing.assert_close(
        (found - mean).square().sum(dim), (LARGE - mean).square().sum(dim)
    )
    assert not torch.allclose(found, pruned, atol=1e-2)


def test_scale_below_one_is_possible():
    # Zeroing moves a weight away from a mean that is not zero.
    dense = torch.tensor([[5.0, 1.0], [6.0, 1.0], [7.0, 2.0]])
    keep = torch.tensor([[0, 1], [1, 1], [1, 1]], dtype=torch.bool)
    found = Energy(rows=False, mode="multiplicative").apply(
        dense, torch.where(keep, dense, 0.0), keep, None
    )
    # Column 0: 2 of the dense energy, 37 of the pruned one; clipped to 0.5.
    assert found[:, 0].tolist() == [0.0, 3.0, 3.5]


def test_constant_column_is_left_as_it_is():
    dense = torch.ones(3, 2)
    keep = torch.tensor([[1, 1], [1, 0], [1, 1]], dtype=torch.bool)
    pruned = torch.where(keep, dense, 0.0)
    found = Energy(rows=False).apply(dense, pruned, keep, None)
    assert found[:, 0].tolist() == [1, 1, 1]
    assert found.isfinite().all()
