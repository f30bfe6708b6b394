"""The rules of the house: layout, dependency arrows, cheap imports, the wheel."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "nmsparse": ROOT / "kernels" / "nmsparse",
    "offline_prune": ROOT / "offline_prune",
    "vllm_sparse": ROOT / "vllm_sparse",
}
SOURCES = sorted(
    path
    for folder in PACKAGES.values()
    for path in folder.rglob("*")
    if path.suffix in {".py", ".cpp", ".h"}
)
PYTHON = [path for path in SOURCES if path.suffix == ".py"]
MAX_LINES = 400
MAX_IMPORT_SECONDS = 0.3


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def imported(path: Path) -> set[str]:
    """Return the top-level names a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def called(path: Path) -> set[str]:
    """Return the bare names a file calls."""
    tree = ast.parse(path.read_text("utf-8"))
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def test_there_is_something_to_check():
    assert all(folder.is_dir() for folder in PACKAGES.values())
    assert len(PYTHON) > 20


@pytest.mark.parametrize("folder", ["kernels", "deploy"])
def test_folder_is_no_package(folder):
    # transformers imports whatever package is called `kernels`.
    assert not (ROOT / folder / "__init__.py").exists()


def test_tests_hold_no_package():
    # A package tests/nmsparse would stand in front of the real one.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_typed(package):
    assert (PACKAGES[package] / "py.typed").is_file()
    for folder in PACKAGES[package].rglob("*"):
        if folder.is_dir() and any(folder.glob("*.py")):
            assert (folder / "__init__.py").is_file(), f"{name(folder)} is not packaged"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_file_is_short(path):
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_file_keeps_the_rules(path):
    text = path.read_text("utf-8")
    assert "print" not in called(path), "log it, or write through rich"
    assert path.name not in {"utils.py", "helpers.py"}, "name the file for what it does"
    assert "model.model.layers" not in text, "find blocks by type"
    assert not re.search(r"cuda:\d", text), "use the tensor's device"
    names = imported(path)
    if not path.is_relative_to(PACKAGES["vllm_sparse"]):
        assert "vllm" not in names, "only vllm_sparse knows vLLM"
    if not path.name.endswith("_triton.py"):
        assert "triton" not in names, "triton only in *_triton.py"


def compared_versions(path: Path) -> list[int]:
    """Return the lines that compare a version; reporting one is fine."""
    words = {"__version__", "__version_tuple__", "Version", "installed_vllm"}
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Compare)
        and not all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
        for part in ast.walk(node)
        if getattr(part, "attr", getattr(part, "id", None)) in words
    ]


@pytest.mark.parametrize(
    "path",
    [p for p in PYTHON if p.is_relative_to(PACKAGES["vllm_sparse"])],
    ids=name,
)
def test_only_compat_branches_on_versions(path):
    if path == PACKAGES["vllm_sparse"] / "compat.py":
        assert "packaging" in imported(path)
        return
    assert compared_versions(path) == [], "move the branch to compat.py"
    assert "packaging" not in imported(path), "compare versions in compat.py"


def test_import_contracts_hold():
    run(str(Path(sysconfig.get_path("scripts")) / "lint-imports"), "--no-cache")


@pytest.mark.parametrize("package", PACKAGES)
def test_import_is_free_of_side_effects(package):
    program = f"import json, sys, {package}; print(json.dumps(list(sys.modules)))"
    modules = {
        module.partition(".")[0]
        for module in json.loads(run(sys.executable, "-c", program).stdout)
    }
    heavy = {"vllm", "triton", "datasets", "transformers", "torch", "pydantic"}
    assert modules & heavy == set()


def test_import_is_fast():
    # Processor time of the best of three: a busy machine makes nobody's import slow.
    # None of the packages imports torch (above), so this is the time beyond torch.
    program = (
        "import time; start = time.process_time()\n"
        f"import {', '.join(PACKAGES)}\n"
        "print(time.process_time() - start)"
    )
    runs = [float(run(sys.executable, "-c", program).stdout) for _ in range(3)]
    assert min(runs) < MAX_IMPORT_SECONDS


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_vllm_is_never_a_base_dependency(pyproject):
    required = pyproject["project"]["dependencies"]
    assert not [line for line in required if line.startswith("vllm")]


def test_versions_agree(pyproject):
    import nmsparse
    import offline_prune
    import vllm_sparse

    version = pyproject["project"]["version"]
    assert offline_prune.__version__ == version
    assert vllm_sparse.__version__ == version
    assert getattr(nmsparse, "__version__", version) == version
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {version}\n" in citation


def test_lock_is_exact_and_portable():
    lines = (ROOT / "requirements" / "cpu.lock").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", pin) for pin in pins)
    names = {pin.partition("==")[0].lower() for pin in pins}
    assert {"torch==2.13.0+cpu", "setuptools==78.1.1"} <= set(pins)
    assert not names & {"pip", "torchvision", "torchaudio", "torchcodec", "vllm"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy: building in the checkout leaves files behind."""
    source = tmp_path_factory.mktemp("source")
    for entry in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / entry, source)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    # The folders that must stay out of the wheel are part of the experiment.
    for folder in ("kernels", "offline_prune", "vllm_sparse", "tests", "requirements"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    output = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    run(*build, "--skip-dependency-check", "--outdir", str(output), cwd=source)
    (path,) = output.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_three_packages_and_nothing_else(wheel):
    files = {entry for entry in wheel.namelist() if ".dist-info/" not in entry}
    assert {entry.partition("/")[0] for entry in files} == set(PACKAGES)
    for package, folder in PACKAGES.items():
        expected = {
            f"{package}/{path.relative_to(folder)}"
            for path in folder.rglob("*")
            if path.suffix in {".py", ".cpp", ".h", ".typed"}
        }
        assert expected <= files


def test_wheel_declares_plugins_and_commands(wheel):
    (entry_points,) = (f for f in wheel.namelist() if f.endswith("entry_points.txt"))
    text = wheel.read(entry_points).decode()
    for line in (
        "[vllm.general_plugins]\nvllm_sparse = vllm_sparse:register\n",
        "[vllm.endpoint_plugins]\n"
        "vllm_sparse = vllm_sparse.serving.endpoint:SparsityEndpoint\n",
        "offline-prune = offline_prune.cli:main\n",
        "vllm-sparse = vllm_sparse.cli:main\n",
    ):
        assert line in text
