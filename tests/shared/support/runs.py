"""Start engines in child processes and read their results."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ENGINE = Path(__file__).with_name("engine.py")
VOCABULARY = range(3, 259)


def prompts(count: int, seed: int, longest: int = 40) -> list[list[int]]:
    """Return random token prompts of 1 to ``longest`` tokens, ``<bos>`` first."""
    rng = random.Random(seed)
    lengths = [rng.randrange(longest) for _ in range(count)]
    return [[1, *(rng.choice(VOCABULARY) for _ in range(n))] for n in lengths]


def sparse(
    pattern: str, phase: str = "decode", kernels: str = "off", **engine: Any
) -> dict[str, Any]:
    """Return engine options that switch sparsity on.

    Kernels are off by default: products are then vLLM's own, so that tokens can be
    compared exactly in any dtype.
    """
    options = {"activation_sparsity": pattern, "phase": phase, "kernels": kernels}
    return {**engine, "additional_config": {"vllm_sparse": options}}


def run_engines(
    jobs: dict[str, dict[str, Any]], **environment: str
) -> dict[str, dict[str, Any]]:
    """Run the jobs one after the other in one child process.

    Raises:
        AssertionError: with the end of the child's output, if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        process = subprocess.run(
            [sys.executable, str(ENGINE), str(results)],
            input=json.dumps(list(jobs.values())),
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
        output = process.stdout + process.stderr
        assert process.returncode == 0, output[-6000:]
        return dict(zip(jobs, json.loads(results.read_text()), strict=True))


def run_engine_expecting_failure(job: dict[str, Any]) -> str:
    """Run one job that must fail; return what it printed."""
    process = subprocess.run(
        [sys.executable, str(ENGINE), os.devnull],
        input=json.dumps([job]),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode != 0
    return process.stdout + process.stderr
