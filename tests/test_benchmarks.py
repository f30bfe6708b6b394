"""Benchmarks: the kernels' script end to end, its modes, tables and picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch

from nmsparse import parse_pattern, sparsify
from nmsparse.native import library

FIELDS = {
    "benchmark",
    "preset",
    "shape",
    "K",
    "O",
    "tokens",
    "threads",
    "dtype",
    "mode",
    "isa",
    "rounds",
    "speed_vs_stock_p20",
    "speed_vs_stock_p50",
    "speed_vs_stock_p80",
    "microseconds_p50",
    "bytes_read",
    "gb_per_s",
    "scan_gb_per_s",
    "roofline_fraction",
    "date",
    "commit",
    "hardware",
    "versions",
}
SPEEDS = {
    "stock": 1.0,
    "stock again": 1.01,
    "8:16": 1.8,
    "4:16": 3.2,
    "8:16 shared": 1.7,
    "packed 50%": 1.5,
    "packed 70%": 2.5,
    "sparsify": 90.0,
}


@pytest.fixture
def scripts(repo_root, monkeypatch):
    folder = repo_root / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def native(scripts):
    pytest.importorskip("vllm")
    if not library.status().available:
        pytest.skip(library.status().reason)
    return scripts


def sample_rows(**changes):
    rows = []
    for threads in (1, 2):
        for tokens in (1, 2, 4):
            for mode, speed in SPEEDS.items():
                row = dict.fromkeys(FIELDS, "text")
                row |= {"preset": "bars", "shape": "64x96", "K": 64, "O": 96}
                row |= {"tokens": tokens, "threads": threads, "mode": mode}
                row |= {f"speed_vs_stock_p{p}": speed for p in (20, 50, 80)}
                row |= {"microseconds_p50": 10.0 * tokens, "bytes_read": 3072 * tokens}
                row |= {"roofline_fraction": 0.75, "dtype": "bfloat16"}
                rows.append(row | {"hardware": "machine", "isa": "best"} | changes)
    return rows


@pytest.fixture
def written(scripts, tmp_path, monkeypatch):
    """Return a function that makes these the only rows there are."""
    import rows

    monkeypatch.setattr(rows, "RESULTS", tmp_path)

    def write(found):
        text = "".join(json.dumps(row) + "\n" for row in found)
        (tmp_path / "kernels.jsonl").write_text(text, encoding="utf-8")

    return write


def test_no_script_is_called_like_the_package_that_transformers_imports(scripts):
    assert not (scripts / "kernels.py").exists()


def test_tiny_preset_writes_complete_rows(native, tmp_path):
    options = {"preset": ["tiny"], "rounds": ["1"], "tokens": ["1", "3"]}
    options |= {"threads": ["1"], "weights-mib": ["1"], "scan-mib": ["4"]}
    flags = [
        text for name, values in options.items() for text in (f"--{name}", *values)
    ]
    done = subprocess.run(
        [sys.executable, native / "kernel_speed.py", *flags, "--results", tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "kernels.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    from kernel_modes import HEAD_MODES, MODES

    assert Counter(row["shape"] for row in found) == {
        "layer": 2 * len(MODES),
        "lm_head": 2 * len(HEAD_MODES),
    }
    for row in found:
        assert row.keys() >= FIELDS
        assert row["benchmark"] == "kernels"
        assert row["threads"] == 1
        assert row["microseconds_p50"] > 0
        assert row["scan_gb_per_s"] > 0
        assert (row["roofline_fraction"] == 0) == (row["mode"] == "sparsify")
        if row["mode"] == "stock":
            assert row["speed_vs_stock_p50"] == 1
            assert row["bytes_read"] == row["K"] * row["O"] * 2
    read = {
        (row["mode"], row["tokens"]): row["bytes_read"] / (64 * 96 * 2)
        for row in found
        if row["shape"] == "layer"
    }
    assert read["8:16", 1] == read["8:16 shared", 3] == 0.5
    assert read["4:16", 1] == 0.25
    assert 0.5 < read["8:16", 3] < 1
    assert read["8:16 per token lists", 3] == 1.5
    assert 0.5 < read["packed 50%", 1] < 0.75


def test_every_mode_computes_its_product(native):
    from kernel_modes import MODES, Shape, Turns, Weights

    torch.manual_seed(0)
    shape = Shape("layer", 128, 96)
    weights = Weights(shape, torch.bfloat16, 2 * 128 * 96 * 2)
    x = torch.randn(3, 128, dtype=torch.bfloat16)
    eight = sparsify(x, parse_pattern("8:16"))
    first = torch.where(eight[0] != 0, x, 0)
    dense = weights.dense
    expected = dict.fromkeys(MODES, (x, dense)) | {
        "8:16": (eight, dense),
        "8:16 per token lists": (eight, dense),
        "8:16 shared": (first, dense),
        "4:16": (sparsify(x, parse_pattern("4:16")), dense),
        "2:4": (sparsify(x, parse_pattern("2:4")), dense),
        "packed 50%": (x, weights.pruned(0.5)),
        "packed 70%": (x, weights.pruned(0.7)),
    }
    for name, (activation, weight) in expected.items():
        mode = MODES[name](weights, Turns([x]))
        if name == "sparsify":
            assert torch.equal(mode.run().to_dense(), eight)
            continue
        assert mode.copies >= 2
        want = activation.float() @ weight.float().t()
        for _ in range(mode.copies):
            torch.testing.assert_close(mode.run().float(), want, atol=0.02, rtol=0.02)


def test_heads_have_dense_modes_only(native):
    from kernel_modes import HEAD_MODES, Shape, modes_of

    head = Shape("lm_head", 64, 160)
    assert modes_of(head, ["8:16", "packed 50%"]) == ["stock"]
    assert set(modes_of(head, HEAD_MODES)) == set(HEAD_MODES)


def test_a_row_keeps_what_it_says_itself(scripts, tmp_path):
    import rows

    path = rows.append("any", [{"threads": 3}, {}], folder=tmp_path)
    own, none = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    assert own["threads"] == 3
    assert isinstance(none["threads"], str)
    assert rows.percentile([0.5], 80) == 0.5
    assert rows.percentile([1.0, 2.0, 3.0], 50) == 2


def test_tables_render_from_rows(written):
    import tables

    written(sample_rows())
    text = tables.TABLES["kernels"]()
    assert "machine; kernels `best`; bfloat16" in text
    lines = text.splitlines()
    assert len([line for line in lines if line.startswith("| 64x96 |")]) == 2
    assert "| 64x96 | 1 | 1.80x (0.75) | 3.20x (0.75) | - |" in text
    assert "| 1.01x (1.01 to 1.01) |" in text
    more = tables.TABLES["kernels-tokens"]()
    assert "| 64x96 | 2 | 2 / 4 | 1.80x / 1.80x |" in more
    union = tables.TABLES["kernels-union"]()
    assert "| 1 | 2 | 0.750 | 0.500 | 2.00 | 0.438 | 0.500 | 2.00 |" in union
    assert "| 64 | 1 | 4 | 40.0 | 100.0% |" in tables.TABLES["kernels-selection"]()


def test_tables_show_the_newest_row_and_keep_places_apart(written):
    import kernel_tables
    import tables

    old = sample_rows(speed_vs_stock_p50=0.5)
    written([*old, *sample_rows(isa="avx2"), *sample_rows()])
    text = tables.TABLES["kernels"]()
    assert "0.50x" not in text
    assert text.index("kernels `best`") < text.index("kernels `avx2`")
    assert text.count("| layer, K x O |") == 2
    assert {row["isa"] for row in kernel_tables.measured_last()} == {"best"}


def test_tables_say_that_there_are_no_rows(written):
    import kernel_tables
    import tables

    written([])
    assert kernel_tables.measured_last() == []
    for name in ("kernels", "kernels-tokens", "kernels-union", "kernels-selection"):
        assert "make bench-kernels" in tables.TABLES[name]()


def test_render_replaces_known_markers_only(written):
    import tables

    written([])
    found = Counter()
    page = "a <!-- table:kernels -->\nold\n<!-- /table:kernels --> b"
    text = tables.render(page, found)
    assert found == {"kernels": 1}
    assert "old" not in text
    assert text.startswith("a ")
    assert text.endswith(" b")
    with pytest.raises(SystemExit, match="table:other is unknown"):
        tables.render(page.replace("kernels", "other"), found)


def test_picture_is_the_same_for_the_same_rows(scripts, tmp_path):
    import plot

    # A layer that lacks modes does not change the lines of the others.
    head = [row for row in sample_rows(shape="lm_head") if "packed" in row["mode"]]
    assert plot.curves(sample_rows() + head) == plot.curves(sample_rows())
    for name in ("a.svg", "b.svg"):
        plot.draw(sample_rows(), tmp_path / name)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "b.svg").read_text(encoding="utf-8")
    for mode in plot.DRAWN:
        assert mode in text
    plot.draw([], tmp_path / "empty.svg")
    assert "no rows yet" in (tmp_path / "empty.svg").read_text(encoding="utf-8")


def test_picture_without_matplotlib_names_the_extra(scripts, tmp_path, monkeypatch):
    import plot

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="report"):
        plot.draw([], tmp_path / "a.svg")
