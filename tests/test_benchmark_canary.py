"""The canary's benchmarks: rows from seconds and sums, and their tables."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def load(repo_root, monkeypatch):
    """Return a function that imports a script of benchmarks/."""
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    return importlib.import_module


ABOUT = {"model": "m", "pattern": "8:16", "compiled": False, "batch": 4, "threads": 1}
ABOUT |= {"sparse_layers": 72, "tapped_layers": 12, "taps_us": 20.0}
ABOUT |= {"date": "2026-01-01", "hardware": "a machine"}


def row(load, sampled):
    script = load("canary_cost")
    return ABOUT | script.make_row([0.04, 0.05, 0.04, 0.04], sampled, taps_us=20.0)


def test_a_sampled_step_is_compared_with_its_neighbour(load):
    made = row(load, [0.046, 0.054, 0.045, 0.1])
    assert (made["step_ms"], made["pairs"]) == (40, 4)
    assert made["sampled_more_ms"] == pytest.approx(5.5), "6, 4, 5 and 60 ms more"
    # The taps at every step, and 5.5 ms at the share of them.
    wanted = {"0.001": 0.0255 / 40, "0.01": 0.075 / 40, "0.1": 0.57 / 40}
    assert made["cost"] == pytest.approx(wanted)


def test_the_table_of_costs(load, monkeypatch):
    tables = load("canary_tables")
    found = [row(load, [sampled] * 4) for sampled in (0.1, 0.05)]
    monkeypatch.setattr(tables.rows, "read", lambda name: found)
    lines = tables.cost().splitlines()
    assert len(lines) == 3, "the newest row of each setting"
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert "| 12 of 72 | 40.0 ms | 20 us | +10.0 ms (6.0 to 10.0) |" in lines[2]
    assert "| 0.07 % | 0.30 % | 2.55 % |" in lines[2]


def test_a_table_without_rows(load, monkeypatch):
    tables = load("canary_tables")
    monkeypatch.setattr(tables.rows, "read", lambda name: [])
    assert tables.cost().startswith("No rows yet")


def test_values_are_means_and_their_spread(load):
    script = load("canary_values")
    sums = [
        {"up": {"tokens": n, "relative_error": error, "cosine_distance": error / 4}}
        for n, error in ((0, 0.0), (3, 0.9), (3, 0.9), (6, 2.4))
    ]
    (made,) = script.make_rows(sums, {"model": "m"}, "8:16", "magnitude")
    assert (made["relative_error"], made["cosine_distance"]) == (0.4, 0.1)
    assert made["comparisons"] == 6
    # Samples of 0.3 and 0.5.
    assert made["spread"] == pytest.approx(0.02**0.5 / 0.4, abs=1e-3)


def test_the_table_of_values(load, monkeypatch):
    tables = load("canary_tables")
    common = {"model": "m", "pattern": "8:16", "treatment": "t", "date": "2026-01-01"}
    common |= {"prompts": 8, "tokens": 128, "spread": 0.2}
    rows = [
        common | {"kind": kind, "relative_error": 0.25, "cosine_distance": 0.0312}
        for kind in ("qkv", "o")
    ]
    monkeypatch.setattr(tables.rows, "read", lambda name: rows)
    lines = tables.values().splitlines()
    assert lines[0].startswith("| model | pattern | treatment | qkv | o |")
    assert lines[2].startswith("| m | 8:16 | t | 0.250, 0.031 | 0.250, 0.031 |")
