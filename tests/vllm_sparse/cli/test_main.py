"""The command line: usage, exit statuses, and errors that come at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from vllm_sparse import __version__
from vllm_sparse.cli import main

# No slow import may stand between a typing mistake and its message.
MAX_SECONDS = 2.0
SERVE = ["serve", "nobody/nothing"]
MISTAKES = {
    "pattern": (
        [*SERVE, "--activation-sparsity", "16:8"],
        "Sparsity pattern 16:8 is invalid. Expected N:M",
    ),
    "pattern after an equals sign": (
        [*SERVE, "--activation-sparsity=eight"],
        "Sparsity pattern 'eight' is not understood",
    ),
    "underscores": (
        [*SERVE, "--activation_sparsity=16:8"],
        "Sparsity pattern 16:8 is invalid",
    ),
    "pattern and file": (
        [*SERVE, "--activation-sparsity", "8:16", "--sparsity-config", "x.json"],
        "--activation-sparsity and --sparsity-config are both given. Expected one",
    ),
    "off and file": (
        [*SERVE, "--activation-sparsity", "off", "--sparsity-config", "x.json"],
        "are both given",
    ),
    "missing file": (
        [*SERVE, "--sparsity-config", "/no/such.json"],
        "Sparsity config /no/such.json does not exist. Expected a JSON file",
    ),
    "underscores in a path": (
        [*SERVE, "--sparsity_config=/no/such_file.json"],
        "Sparsity config /no/such_file.json does not exist",
    ),
    "among flags of vLLM": (
        [*SERVE, "--port", "0", "--activation-sparsity", "9:8", "--enforce-eager"],
        "Sparsity pattern 9:8 is invalid",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_before_vllm_is_imported(
    capsys, monkeypatch, arguments, message
):
    from vllm_sparse.cli import serve

    def slow(*args):
        raise AssertionError("vLLM was reached")

    monkeypatch.setattr(serve, "_parse", slow)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vllm-sparse serve: error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_unknown_phase(capsys):
    with pytest.raises(SystemExit) as caught:
        main([*SERVE, "--activation-sparsity", "8:16", "--sparsity-phase", "never"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "--sparsity-phase: invalid choice: 'never'" in error
    assert "prefill" in error


def run(*arguments):
    """Run the command as a user does; return status, output, error and seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "vllm_sparse", *arguments],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr, time.perf_counter() - start


def test_a_mistake_costs_no_waiting():
    seconds = []
    for _ in range(3):  # the machine may be busy
        status, output, error, took = run(*SERVE, "--activation-sparsity", "16:8")
        assert (status, output) == (2, "")
        assert "16:8 is invalid" in error
        seconds.append(took)
        if took < MAX_SECONDS:
            return
    raise AssertionError(f"took {seconds} s")


def test_a_mistake_imports_neither_vllm_nor_torch():
    code = (
        "import json, sys; from vllm_sparse.cli import main;"
        f"status = main({[*SERVE, '--activation-sparsity', '16:8']!r});"
        "heavy = {'torch', 'vllm', 'transformers', 'fastapi'} & set(sys.modules);"
        "print(json.dumps([status, sorted(heavy)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert json.loads(done.stdout) == [2, []]


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(capsys, flag):
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help(capsys, flag):
    assert main([flag]) == 0
    output = capsys.readouterr().out
    assert "usage: vllm-sparse serve MODEL" in output
    assert "vllm-sparse doctor" in output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [([], "no command given"), (["sreve"], "unknown command 'sreve'")],
    ids=["none", "unknown"],
)
def test_wrong_command_shows_the_usage(capsys, arguments, problem):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"vllm-sparse: error: {problem}\n\n")
    assert "usage: vllm-sparse serve MODEL" in captured.err


def test_arguments_come_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vllm-sparse", "--version"])
    assert main() == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_as_a_module():
    assert run("--version")[:3] == (0, f"{__version__}\n", "")
    assert run("nonsense")[0] == 2
