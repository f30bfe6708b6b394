"""Relative error and cosine distance, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vllm_sparse.canary.compare import compare


def both(result, dense, dtype=torch.float32):
    found = compare(torch.tensor([result], dtype=dtype), torch.tensor([dense]))
    assert found.dtype is torch.float64
    return found.tolist()


@pytest.mark.parametrize(
    ("result", "dense", "error", "distance"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0, 0.0),
        ([3.0, 0.0], [3.0, 4.0], 4 / 5, 1 - 3 / 5),
        ([6.0, 8.0], [3.0, 4.0], 1.0, 0.0),  # twice as long, the same direction
        ([-3.0, -4.0], [3.0, 4.0], 2.0, 2.0),
        ([4.0, -3.0], [3.0, 4.0], math.sqrt(50) / 5, 1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0),
        ([0.0, 0.0], [3.0, 4.0], 1.0, 1.0),
        ([3.0, 4.0], [0.0, 0.0], 1.0, 1.0),
        ([math.nan, 4.0], [3.0, 4.0], 1.0, 1.0),
        ([math.inf, 4.0], [3.0, 4.0], 1.0, 1.0),
        ([-math.inf, 4.0], [math.nan, 4.0], 1.0, 1.0),
    ],
)
def test_numbers(result, dense, error, distance):
    assert both(result, dense) == pytest.approx([error, distance], abs=1e-12)


def test_small_differences_of_large_results_are_seen():
    dense = torch.full((1, 4), 1e30)
    found = compare(dense * (1 + 1e-5), dense)
    assert found[0].item() == pytest.approx(1e-5, rel=0.02)
    assert 0 <= found[1].item() < 1e-12


def test_half_types_are_compared_in_double():
    assert both([3.0, 0.0], [3.0, 4.0], torch.bfloat16) == pytest.approx([0.8, 0.4])
