"""``build_report``: files in a folder, again and again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.run_results import run

from offline_prune.errors import InputError, MissingDependencyError
from offline_prune.report.build import build_report
from offline_prune.report.results import read_results, write_results


@pytest.fixture
def folder(tmp_path):
    write_results(tmp_path, run(3))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Base\n", "utf-8")
    return tmp_path


def contents(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_writes_texts_and_pictures_and_says_which(folder):
    pytest.importorskip("matplotlib")
    before = set(contents(folder))
    written = {str(path.relative_to(folder)) for path in build_report(folder)}
    assert {"report.md", "README.md", "figures/blocks.png"} <= written
    assert set(contents(folder)) == before | written
    assert "(figures/blocks.png)" in (folder / "report.md").read_text("utf-8")


def test_again_changes_nothing(folder):
    build_report(folder, plots=False)
    once = contents(folder)
    build_report(folder, plots=False)
    assert contents(folder) == once


def test_without_pictures(folder):
    assert [path.name for path in build_report(folder, plots=False)] == [
        "report.md",
        "README.md",
    ]
    assert not (folder / "figures").exists()
    assert "figures/" not in (folder / "README.md").read_text("utf-8")


def test_matplotlib_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError):
        build_report(folder)
    assert "# Base" in (folder / "README.md").read_text("utf-8")
    assert "figures/" not in (folder / "report.md").read_text("utf-8")


def test_folder_that_was_packed_afterwards(folder):
    config = {"quantization_config": {"quant_method": "vllm_sparse"}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "model.safetensors").write_bytes(b"x" * 1234)
    build_report(folder, plots=False)
    text = (folder / "report.md").read_text("utf-8")
    assert "| packed (this folder) | 1.23 kB |" in text
    assert "saved model.safetensors" not in text
    assert read_results(folder).sizes.saved_format == "dense"


def test_no_results(tmp_path):
    with pytest.raises(InputError, match="results"):
        build_report(tmp_path)


def test_imports_are_cheap():
    program = (
        "import json, sys\n"
        "import offline_prune.report.build, offline_prune.verification\n"
        "import offline_prune.methods, offline_prune.recipes\n"
        "print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "transformers", "matplotlib", "datasets"}
