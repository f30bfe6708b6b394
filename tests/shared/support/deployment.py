"""Read what deploy/ holds the way its readers do: vLLM's parser, kubectl, YAML."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
OVERLAYS = ("cpu", "gpu", "tensor-parallel", "multi-replica")
UID = 10001


def program(name: str) -> str:
    """Return the path of a tool of this environment, or skip."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; `make setup` installs it")
    return found


def run(*command: str) -> str:
    """Run a tool in the repository's root; its output is the failure's message."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return [part for part in yaml.safe_load_all(path.read_text()) if part]


def build(folder: str) -> list[dict[str, Any]]:
    """Return the objects that ``kubectl kustomize`` makes of deploy/kubernetes/..."""
    text = run(program("kubectl"), "kustomize", f"deploy/kubernetes/{folder}")
    return [part for part in yaml.safe_load_all(text) if part]


def parse_flags(arguments: list[str]) -> argparse.Namespace:
    """Parse arguments of ``vllm-sparse serve`` with vLLM's own parser.

    Raises:
        SystemExit: at a flag that does not exist or a value it does not take.
    """
    from vllm_sparse.cli.serve import _parse

    return _parse(arguments)[0]


def tag_of(image: str) -> str:
    """Return the tag of an image, with the registry's port kept out of it."""
    return image.rpartition("/")[2].partition(":")[2]


def assert_pinned(image: str) -> None:
    """Fail for an image without a version."""
    assert any(c.isdigit() for c in tag_of(image)), f"{image}: expected a version"
    assert "latest" not in tag_of(image), image
