"""Levels of density: the same scale for N:M patterns and whole rows."""

from __future__ import annotations

import pytest

from nmsparse.pattern import NMPattern, Unstructured
from offline_prune.online.levels import ROW_LEVELS, Levels


@pytest.mark.parametrize("level", [1, 5, 15, 16])
def test_rows_and_groups_of_16_keep_the_same_number(level):
    rows, groups = Levels(None, ROW_LEVELS), Levels.nm("16")
    assert rows.kept(level, 640) == groups.kept(level, 640) == 40 * level


def test_patterns():
    assert Levels.nm("4").pattern(3) == NMPattern(3, 4)
    assert Levels(None, 16).pattern(4) == Unstructured(0.75)
    assert Levels(None, 16).pattern(16).is_dense
    assert Levels.nm("16").pattern(16).is_dense


def test_a_width_that_m_does_not_divide():
    with pytest.raises(ValueError, match="not a multiple"):
        Levels.nm("16").kept(8, 100)
    assert Levels(None, 16).kept(8, 100) == 50
