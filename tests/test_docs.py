"""The documents follow the code: tables from rows, metric names, examples, links."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from nmsparse.config import SparsityConfig
from vllm_sparse.options import resolve_options
from vllm_sparse.serving.catalog import CATALOG


@pytest.fixture(scope="module")
def pages(repo_root):
    files = [*repo_root.glob("*.md"), *repo_root.glob("docs/*.md")]
    return {file: file.read_text(encoding="utf-8") for file in files}


def test_readme_tables_come_from_rows(repo_root):
    command = [sys.executable, repo_root / "benchmarks/tables.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_rows_say_where_they_were_measured(repo_root):
    for file in (repo_root / "benchmarks/results").glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for key in ("benchmark", "date", "commit", "hardware", "versions"):
                assert row[key], (file.name, key)


def test_metric_names_in_the_documents_exist(pages):
    names = {metric.sample for metric in CATALOG}
    assert len(names) == len(CATALOG) >= 15
    text = "\n".join(pages.values())
    exist = names | {"vllm_sparse_config", "vllm_sparse_params", "vllm_sparse_stats"}
    exist |= {"vllm_sparse_provenance", "vllm_sparse_parameters"}
    exist |= {f"{name}_bucket" for name in names}
    for name in set(re.findall(r"\bvllm_sparse_[a-z_]+[a-z]\b", text)):
        assert name in exist, name
    for name in names:
        assert name in text, name


def test_configuration_examples_are_valid(pages):
    found = 0
    for text in pages.values():
        for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL):
            data = json.loads(block)
            if "groups" in data:
                SparsityConfig.parse(data, source="example")
                found += 1
            if "vllm_sparse" in data:
                assert resolve_options(data["vllm_sparse"], None)
    assert found


def test_links_lead_to_files(pages):
    for file, text in pages.items():
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (file.parent / target).exists(), (file.name, target)


def test_the_tree_names_every_module(repo_root, pages):
    tree = pages[repo_root / "docs/tree.md"]
    for package in ("kernels/nmsparse", "offline_prune", "vllm_sparse"):
        for file in (repo_root / package).rglob("*.py"):
            name = file.name if file.name != "__init__.py" else file.parent.name
            assert name in tree, file
