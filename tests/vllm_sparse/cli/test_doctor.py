"""``vllm-sparse doctor``: what it finds, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest

from vllm_sparse import __version__
from vllm_sparse.cli import doctor as module
from vllm_sparse.cli import main
from vllm_sparse.cli.doctor import Check


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


@pytest.mark.parametrize("op", ["sparsify", "compact", "linear"])
def test_every_op_says_which_backend_runs_and_why(report, op):
    chosen, *refused = found(report, f"{op} on cpu")
    assert chosen["ok"] is True
    assert ": " in chosen["found"]
    assert all(" not used: " in row["found"] for row in refused)


@pytest.fixture
def quick(monkeypatch):
    """Leave out the sections that a test is not about."""
    for section in ("_versions", "_hardware", "_plugin", "_backends"):
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
