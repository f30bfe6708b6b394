"""The ``vllm-sparse`` command: ``serve``, ``eval``, ``plan`` and ``doctor``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vllm_sparse import __version__

_USAGE = f"""\
vllm-sparse {__version__}: activation sparsity for vLLM

usage: vllm-sparse serve MODEL [--activation-sparsity 8:16] [vLLM's own flags]
       vllm-sparse eval MODEL --text FILE [--dense] [--phase both decode]
       vllm-sparse plan MODEL --gpu H200 [--batch 1 4 16] [--json]
       vllm-sparse doctor [--json] [--model FOLDER]
       vllm-sparse --version

serve    vLLM's OpenAI-compatible server with sparse linear layers
eval     perplexity, decode fidelity and tasks through the engine, sparse and dense
plan     bytes a token, ceilings and memory of a deployment, before it exists
doctor   versions, hardware, which backends work and why the others do not; with
         --model, the memory of its layers

'vllm-sparse serve --help' lists vLLM's flags and ours.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    if command == "serve":
        from vllm_sparse.cli.serve import serve

        return serve(arguments[1:])
    if command == "eval":
        from vllm_sparse.cli.eval import evaluate

        return evaluate(arguments[1:])
    if command == "plan":
        from vllm_sparse.cli.plan import plan

        return plan(arguments[1:])
    if command == "doctor":
        from vllm_sparse.cli.doctor import doctor

        return doctor(arguments[1:])
    if command in ("-V", "--version"):
        sys.stdout.write(f"{__version__}\n")
        return 0
    if command in ("-h", "--help", "help"):
        sys.stdout.write(_USAGE)
        return 0
    problem = f"unknown command {command!r}" if command else "no command given"
    sys.stderr.write(f"vllm-sparse: error: {problem}\n\n{_USAGE}")
    return 2
