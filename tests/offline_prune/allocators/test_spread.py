"""Shared steps of allocators."""

from __future__ import annotations

import math

import pytest

from offline_prune.allocators.spread import around, complete, unit_range


def test_unknown_measures_become_the_mean():
    assert complete([1.0, math.nan, 3.0, math.inf], blocks=4) == [1.0, 2.0, 3.0, 2.0]
    assert complete([math.nan, math.nan], blocks=2) == [0.0, 0.0]


def test_every_block_needs_a_measure():
    with pytest.raises(ValueError, match="2 measures for 3 blocks"):
        complete([1.0, 2.0], blocks=3)


def test_range():
    assert unit_range([3.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("values", [[2.0], [0.0, 0.0], [1e6, 1e6 * (1 + 1e-15)]])
def test_equal_values_have_no_range(values):
    assert unit_range(values) is None
    assert around(values, 0.1, sparsity=0.7) == [0.7] * len(values)
