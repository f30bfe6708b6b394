"""The canary's benchmarks: rows from seconds and sums, and their tables."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture
def load(repo_root, monkeypatch):
    """Return a function that imports a script of benchmarks/."""
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    return importlib.import_module


ABOUT = {"model": "m", "pattern": "8:16", "compiled": False, "tokens": 11, "rounds": 3}
FOUND = {"batch": 4, "threads": 1, "sparse_layers": 72, "tapped_layers": 12}


def row(load, share, canary):
    seconds = {"without": [1.0, 1.0, 2.0], "canary": canary}
    found = FOUND | {"sampled_steps": 3, "seconds": seconds}
    return load("canary_cost").make_row(found, ABOUT | {"share": share})


def test_a_row_has_the_ratio_of_all_seconds(load):
    made = row(load, 0.1, [1.0, 1.0, 3.0])
    assert made["speed_vs_without_total"] == 0.8
    assert made["speed_vs_without_p50"] == 1.0, "a median does not see a rare sample"
    assert made["milliseconds_per_step_p50"] == 100
    assert (made["share"], made["batch"], made["sampled_steps"]) == (0.1, 4, 3)
    assert "seconds" not in made


def test_the_table_of_costs(load, monkeypatch):
    tables = load("canary_tables")
    where = {"date": "2026-01-01", "hardware": "a machine"}
    rows = [
        row(load, share, [1.0, 1.0, 2.5]) | where | {"tokens": 11, "rounds": 3}
        for share in (0.1, 0, 0.1)
    ]
    rows[-1]["speed_vs_without_total"] = 0.5
    monkeypatch.setattr(tables.rows, "read", lambda name: rows)
    lines = tables.cost().splitlines()
    assert len(lines) == 4, "the newest row of each setting"
    assert "| none, again | 0.889x" in lines[2]
    assert "| 10 % | 0.500x" in lines[3]
    assert "12 of 72 layers, 30 steps" in lines[3]


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
