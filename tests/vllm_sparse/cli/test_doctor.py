"""``vllm-sparse doctor``: what it finds, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from nmsparse.native import library
from nmsparse.native.library import NativeStatus
from vllm_sparse import __version__
from vllm_sparse.cli import doctor as module
from vllm_sparse.cli import main
from vllm_sparse.cli.doctor import Check
from vllm_sparse.gpu import support
from vllm_sparse.table import CACHE_ENV, TableCache

SECTIONS = (
    *("_versions", "_hardware", "_plugin", "_native", "_gpu", "_backends", "_tables"),
)


@pytest.fixture(scope="module")
def report():
    """Run the real command once, in a process of its own: it registers the plugin."""
    done = subprocess.run(
        [sys.executable, "-m", "vllm_sparse", "doctor", "--json"],
        capture_output=True,
        text=True,
    )
    return done.returncode, json.loads(done.stdout)


def found(report, subject):
    return [row for row in report[1] if row["subject"] == subject]


def test_everything_needed_works_here(report):
    status, rows = report
    assert [row for row in rows if row["ok"] is False] == []
    assert status == 0


def test_rows_have_one_form(report):
    assert all(set(row) == {"subject", "found", "ok"} for row in report[1])


def test_versions(report):
    (ours,) = found(report, "vllm-sparse")
    assert ours["found"] == __version__
    (vllm,) = found(report, "vllm")
    assert vllm["found"].endswith("(supported: 0.30 to 0.33)")
    (torch,) = found(report, "torch")
    assert torch["found"] == metadata.version("torch")


def test_the_plugin_registers(report):
    (plugin,) = found(report, "plugin")
    assert plugin == {
        "subject": "plugin",
        "found": "registers its layers and worker methods",
        "ok": True,
    }


@pytest.mark.parametrize("op", ["sparsify", "compact", "linear", "packed"])
def test_every_op_says_which_backend_runs_and_why(report, op):
    chosen, *refused = found(report, f"{op} on cpu")
    assert chosen["ok"] is True
    assert ": " in chosen["found"]
    assert all(" not used: " in row["found"] for row in refused)


@pytest.fixture
def quick(monkeypatch):
    """Leave out the sections that a test is not about."""
    for section in SECTIONS:
        monkeypatch.setattr(module, section, list)
    return monkeypatch


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (None, 0), (False, 1)])
def test_only_what_fails_fails(quick, capsys, ok, status):
    quick.setattr(module, "_plugin", lambda: [Check("thing", "its state", ok)])
    assert main(["doctor"]) == status
    sign = {True: "ok", False: "FAIL", None: "--"}[ok]
    assert capsys.readouterr().out.split() == [sign, "thing", "its", "state"]


def test_json(quick, capsys):
    quick.setattr(module, "_plugin", lambda: [Check("thing", "broken", False)])
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"subject": "thing", "found": "broken", "ok": False}
    ]


def test_unknown_flag():
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "--jsn"])


@pytest.mark.parametrize(
    ("version", "text"),
    [(None, "vLLM is not installed"), ("0.34.0", "vLLM 0.34.0 is not supported")],
)
def test_a_vllm_that_does_not_fit(monkeypatch, version, text):
    monkeypatch.setattr(module, "installed_vllm", lambda: version)
    verdict = next(check for check in module._versions() if check.subject == "vllm")
    assert verdict.ok is False
    assert verdict.found.startswith(text)


def test_missing_entry_point_shows_the_remedy(monkeypatch):
    monkeypatch.setattr(metadata, "entry_points", lambda group: [])
    (check,) = module._plugin()
    assert check.ok is False
    assert "entry point missing; reinstall vllm-sparse: pip install" in check.found


def test_vllm_missing(monkeypatch):
    monkeypatch.setattr(module, "installed_vllm", lambda: None)
    (check,) = module._plugin()
    assert check == Check("plugin", "registered, but vLLM is missing", False)


def test_failing_registration_is_a_finding(monkeypatch):
    def fail():
        raise ImportError("libcudart.so.13 is missing")

    monkeypatch.setattr("vllm_sparse.register", fail)
    (check,) = module._plugin()
    assert check.ok is False
    assert check.found == "register() failed: libcudart.so.13 is missing"


@pytest.mark.parametrize(
    ("origin", "text"), [("wheel", "from the wheel"), ("compiled", "compiled here")]
)
def test_native_kernels(monkeypatch, origin, text):
    status = NativeStatus(True, "avx2", Path("/k/kernels.so"), origin, "/t/libgomp.so")
    monkeypatch.setattr(library, "status", lambda: status)
    assert module._native() == [
        Check("cpu kernels", f"avx2, {text}: /k/kernels.so", True),
        Check("openmp", "/t/libgomp.so"),
    ]


def test_no_native_kernels_is_no_failure(monkeypatch):
    status = NativeStatus(False, reason="C++ compiler: none")
    monkeypatch.setattr(library, "status", lambda: status)
    assert module._native() == [Check("cpu kernels", "none: C++ compiler: none")]


def test_gpu_kernels_and_why_not(monkeypatch):
    monkeypatch.setattr(support, "installed_triton", lambda: "3.9")
    monkeypatch.setattr(support, "engine_problem", lambda: None)
    (check,) = module._gpu()
    assert check.ok is True
    assert check.found.startswith("triton 3.9: unquantized layers gather rows where")
    monkeypatch.setattr(support, "engine_problem", lambda: "no device")
    text = "none: no device (triton 3.9 is importable)"
    assert module._gpu() == [Check("gpu kernels", text)]
    monkeypatch.setattr(support, "installed_triton", lambda: None)
    assert module._gpu() == [Check("gpu kernels", "none: no device")]


def test_settings_that_cannot_be_obeyed_fail(monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("NMSPARSE_ISA='avx215': unknown ISA level")

    monkeypatch.setattr(library, "status", refuse)
    monkeypatch.setattr(module, "explain", refuse)
    for check in (*module._native(), *module._backends()):
        assert check.ok is False
        assert "NMSPARSE_ISA" in check.found


def test_dispatch_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_ENV, str(tmp_path))
    (check,) = module._tables()
    assert check.found == f"none in {tmp_path}: the first start measures"
    about = {"isa": "avx2", "threads": 3, "torch": "2.13", "vllm": "0.32.0"}
    cache = TableCache(tmp_path, about)
    cache.put("8x8", {1: {"stock": 1.0}})
    (check,) = module._tables()
    text = "1 layer shapes, avx2, 3 threads, torch 2.13, vllm 0.32.0"
    assert check == Check("dispatch cache", f"{cache.path}: {text}")
    cache.path.write_text("{")
    (check,) = module._tables()
    assert "cannot be read" in check.found
    cache.path.unlink()
    about = {"gpu": "A GPU", "triton": "3.9", "torch": "2.13", "vllm": "0.32.0"}
    TableCache(tmp_path, about).put("8x8", {1: {"dense": 1.0}})
    (check,) = module._tables()
    text = "1 layer shapes, A GPU, triton 3.9, torch 2.13, vllm 0.32.0"
    assert check.found.endswith(text)


def test_memory_of_a_model(quick, capsys):
    quick.setattr("vllm_sparse.cli.memory.estimate", lambda model: [("keep", model)])
    assert main(["doctor", "--model", "org/name"]) == 0
    assert capsys.readouterr().out.split() == ["--", "memory", "keep", "org/name"]


def test_memory_of_no_model(quick, capsys):
    assert main(["doctor", "--model", "/no/such"]) == 1
    assert "FAIL  memory" in capsys.readouterr().out
