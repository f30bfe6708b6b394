"""``group_limits.py``: what a grouping of channels drops, and the search for one."""

from __future__ import annotations

import importlib

import pytest
import torch

from nmsparse.pattern import NMPattern

PATTERN = NMPattern(2, 4)


@pytest.fixture
def script(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    return importlib.import_module("group_limits")


def shares_of(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    energy = torch.randn(*shape, generator=random).square()
    return energy / energy.sum(1, keepdim=True)


def test_dropped_is_what_the_least_of_each_group_have(script):
    energy = torch.tensor([[0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0]])
    assert script.dropped(energy, torch.arange(8), PATTERN) == pytest.approx(0.3)
    dealt = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])
    assert script.dropped(energy, dealt, PATTERN) == 0


def test_the_search_parts_channels_that_are_large_together(script):
    # Four channels are large in even tokens and the other four in odd ones: a group
    # must hold two of each.
    energy = torch.full((64, 8), 0.01)
    energy[::2, :4], energy[1::2, 4:] = 0.24, 0.24
    start = torch.arange(8)
    found = script.searched_groups(energy, start, PATTERN)
    groups = found.view(2, 4)
    assert ((groups < 4).sum(1) == 2).all()
    before = script.dropped(energy, start, PATTERN)
    assert script.dropped(energy, found, PATTERN) < before / 5


def test_the_search_loses_no_channel_and_no_ground(script):
    energy = shares_of(50, 64)
    start = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    drops = [script.dropped(energy, start, PATTERN)]
    for steps in (1, 10, 100):
        found = script.searched_groups(energy, start, PATTERN, steps=steps)
        assert sorted(found.tolist()) == list(range(64))
        drops.append(script.dropped(energy, found, PATTERN))
    assert drops == sorted(drops, reverse=True)
    assert drops[-1] < drops[0]


@pytest.mark.parametrize("pattern", [NMPattern(2, 4), NMPattern(8, 16)], ids=str)
def test_no_grouping_beats_whole_rows(script, pattern):
    found = script.shares(shares_of(60, 64), pattern)
    assert found["row"] == min(found.values())
    assert set(found) == {"consecutive", "balanced", "searched", "row"}


def test_the_table(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    tables = importlib.import_module("group_tables")
    common = {"model": "m", "pattern": "2:4", "tokens": 3066, "calibration": "web"}
    common |= {"date": "2026-01-01"}
    found = [
        common
        | {"layer": f"model.layers.{block}.mlp.down_proj"}
        | {f"dropped_{name}": share for name in tables.NAMES}
        for block, share in ((1, 0.02), (6, 0.04))
    ]
    monkeypatch.setattr(tables.rows, "read", lambda name: found)
    line = tables.limits().splitlines()[2]
    assert line.startswith("| m | 2:4 | down, 2 blocks | 3.00 % | 3.00 % |")
    monkeypatch.setattr(tables.rows, "read", lambda name: [])
    assert tables.limits().startswith("No rows yet")
