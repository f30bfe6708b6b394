"""Nothing in the sources runs what a file says: no pickle, no eval, no shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kernels", "offline_prune", "vllm_sparse", "benchmarks", "deploy")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "tempfile.mktemp"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"),
    *("ctypes.CDLL", "ctypes.cdll.LoadLibrary"),
}
KEYWORDS = {
    "shell": True,
    "trust_remote_code": True,
    "allow_pickle": True,
    "weights_only": False,
}
# Where one of them is safe, and why.
ALLOWED = {
    # with a loader that derives from SafeLoader
    ("offline_prune/yaml_text.py", "yaml.load"),
    # our own kernels: tests/security/test_private_folder.py
    ("kernels/nmsparse/native/library.py", "ctypes.CDLL"),
    # the OpenMP runtime of torch, and the C library of this process
    ("kernels/nmsparse/native/openmp.py", "ctypes.CDLL"),
    ("kernels/nmsparse/native/memory.py", "ctypes.CDLL"),
    ("benchmarks/decode_load.py", "ctypes.CDLL"),
}


def dangers(source: str) -> Iterator[str]:
    """Yield what of the above a source has."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            yield from _calls({f"{node.module}.{alias.name}" for alias in node.names})
        else:
            names = []
        yield from (name for name in names if name.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            yield from _calls({ast.unparse(node.func)})
            for keyword in node.keywords:
                value = keyword.value
                constant = value.value if isinstance(value, ast.Constant) else None
                if keyword.arg in KEYWORDS and constant is KEYWORDS[keyword.arg]:
                    yield f"{keyword.arg}={constant}"


def _calls(names: set[str]) -> Iterator[str]:
    yield from sorted(names & CALLS)


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return [ROOT / "setup.py", *found]


def test_no_source_can_run_what_it_reads():
    found = {
        (str(path.relative_to(ROOT)), danger)
        for path in sources()
        for danger in dangers(path.read_text("utf-8"))
    }
    assert len(sources()) > 200
    assert found - ALLOWED == set()
    assert ALLOWED - found == set()  # no exception outlives its reason


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "import joblib.memory"),
        *("eval(x)", "exec(x)", "__import__(x)", "torch.load(path)", "os.system(x)"),
        *("yaml.load(x, Loader=yaml.Loader)", "from yaml import unsafe_load"),
        *(
            "run(x, shell=True)",
            "load(x, trust_remote_code=True)",
            "from os import popen",
        ),
        *("np.load(x, allow_pickle=True)", "load(x, weights_only=False)"),
    ],
)
def test_the_check_finds(source):
    assert list(dangers(source))


@pytest.mark.parametrize(
    "source", ["model.eval()", "re.compile(x)", "yaml.safe_load(x)", "f(shell=False)"]
)
def test_the_check_passes(source):
    assert not list(dangers(source))
