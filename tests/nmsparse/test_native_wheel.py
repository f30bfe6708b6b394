"""Wheels bring an object for every level; without a compiler they say so.

A stand-in of one line takes the place of the kernels, so nothing here takes long.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from nmsparse.native import build, isa
from nmsparse.native.compiler import find_compiler

STAND_IN = 'extern "C" int nms_abi_version(void) { return 2; }\n'

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or sys.platform != "linux", reason="needs g++ on Linux"
)


@pytest.fixture
def checkout(tmp_path, repo_root):
    """Copy what a distribution is made from, with the stand-in for the kernels."""
    source = tmp_path / "checkout"
    source.mkdir()
    for entry in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(repo_root / entry, source)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "csrc", "lib")
    for folder in ("kernels", "offline_prune", "vllm_sparse"):
        shutil.copytree(repo_root / folder, source / folder, ignore=ignore)
    csrc = source / "kernels" / "nmsparse" / "csrc"
    csrc.mkdir()
    (csrc / build.UNIT).write_text('#include "part.h"\n')
    (csrc / "part.h").write_text(STAND_IN)
    return source


def distribute(checkout, *options):
    """Build from the copy; return what came out, by suffix."""
    arguments = [sys.executable, "-m", "build", "--no-isolation", *options]
    arguments += ["--skip-dependency-check", "--outdir", "dist"]
    done = subprocess.run(
        arguments, cwd=checkout, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return {path.suffix: path for path in (checkout / "dist").iterdir()}, said


@needs_compiler
def test_wheel_brings_an_object_for_every_level(checkout, monkeypatch):
    monkeypatch.delenv("NMSPARSE_SKIP_NATIVE", raising=False)
    # Without --wheel: a source distribution, and the wheel from that alone.
    made, _ = distribute(checkout)
    with tarfile.open(made[".gz"]) as archive:
        assert any(name.endswith("/csrc/part.h") for name in archive.getnames())
    assert "-py3-none-linux_" in made[".whl"].name
    installed = checkout / "installed"
    with zipfile.ZipFile(made[".whl"]) as wheel:
        wheel.extractall(installed)
    sources = build.source_hash(installed / "nmsparse" / "csrc")
    made_here = [each for each in isa.for_machine() if find_compiler().accepts(each)]
    for level in made_here:
        path = installed / "nmsparse" / "native" / "lib" / build.object_name(level)
        assert build.problem(path, sources) is None
    assert len(list(installed.rglob("*.so"))) == len(made_here)
    assert list(checkout.glob("kernels/**/*.so")) == []


@pytest.mark.parametrize("setting", [("NMSPARSE_SKIP_NATIVE", "1"), ("CXX", "absent")])
def test_wheel_without_a_compiler_is_pure_and_says_so(checkout, monkeypatch, setting):
    monkeypatch.setenv(*setting)
    made, said = distribute(checkout, "--wheel")
    assert "-py3-none-any" in made[".whl"].name
    assert "WHEEL WITHOUT COMPILED CPU KERNELS" in said
    files = zipfile.ZipFile(made[".whl"]).namelist()
    assert "nmsparse/csrc/part.h" in files
    assert not [name for name in files if name.endswith(".so")]
