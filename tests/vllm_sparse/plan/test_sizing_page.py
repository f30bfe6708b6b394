"""docs/sizing.md: its commands are run, and print what the page says they print."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from vllm_sparse.cli import main
from vllm_sparse.plan.machines import GPUS


@pytest.fixture(scope="module")
def page(repo_root):
    return (repo_root / "docs/sizing.md").read_text(encoding="utf-8")


def test_commands_print_what_the_page_shows(page, tmp_path, monkeypatch, capsys):
    (text,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    folder = tmp_path / "llama-8b"
    folder.mkdir()
    (folder / "config.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```console\n\$ vllm-sparse (.*?)\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    for command, shown in blocks:
        assert main(shlex.split(command)) == 0
        assert capsys.readouterr().out.rstrip() == shown.rstrip(), command


def test_the_shapes_are_those_of_the_benchmarks(page, repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    from gpu_models import SHAPES

    (text,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    found = json.loads(text)
    _, expected = SHAPES["llama-8b"]
    shared = found.keys() & expected.keys()
    assert len(shared) >= 9
    assert {key: found[key] for key in shared} == {key: expected[key] for key in shared}


def test_gpus_of_the_page_are_those_of_the_table(page):
    for gpu in GPUS.values():
        numbers = f"{gpu.memory / 1e9:g} | {gpu.bandwidth / 1e9:g}"
        source = gpu.source.removeprefix("NVIDIA, ")
        line = f"| {gpu.name} | {numbers} | {gpu.flops / 1e12:g} | {source} |"
        assert line in page


def test_the_estimate_beside_the_measurement(repo_root, page, monkeypatch, ask):
    """The page's 1.65x, and its 2.08x with shares of the bandwidth."""
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    from plan_tables import ceiling

    assert f"{ceiling('llama-1b-random', '8:16', 1):.2f}" == "1.65"
    linear = 16 * (2048 * 3072 + 2048 * 2048 + 2048 * 16384 + 8192 * 2048)
    head = 2048 * 128256
    dense = (linear + head) / 0.51
    sparse = linear / 2 / 0.75 + head / 0.51
    assert f"{dense / sparse:.2f}x instead of 1.65x" in page


def test_the_table_of_ceilings_has_rows(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    import plan_tables
    import rows

    row = {"model": "llama-1b-random", "threads": 1, "mode": "8:16", "batch": 2}
    row |= {"hardware": "machine", "date": "today", "speed_vs_stock_p50": 1.5}
    other = row | {"mode": "stock"}
    monkeypatch.setattr(rows, "newest", lambda *keys: [row, other])
    assert plan_tables.ceilings().splitlines()[2:] == [
        "| llama-1b-random | 1 | 8:16 | 1.25x / 1.50x | today, machine |"
    ]
    # Above what kernels take there is nothing to gain.
    assert plan_tables.ceiling("llama-1b-random", "pruned 70%", 17) == 1
