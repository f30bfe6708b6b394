"""Time and peak memory of ``offline-prune run`` against the size of the model.

    python benchmarks/pruning_cost.py --calibration web.jsonl --models gemma llama-1b

A model without a tokenizer reads random tokens, which costs the same. Every run is a
process of its own; times and memory are what it writes to ``run.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import models
import rows


def measure(model: Path, arguments: list[str], threads: int) -> dict[str, Any]:
    """Prune once in a child process; return what it cost."""
    with tempfile.TemporaryDirectory(dir=Path.home() / ".cache") as folder:
        output = Path(folder) / "pruned"
        command = [sys.executable, "-m", "offline_prune", "run", str(model)]
        subprocess.run(
            [*command, "-o", str(output), *arguments],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)},
            check=True,
        )
        run = json.loads((output / "run.json").read_text())
        results = json.loads((output / "results.json").read_text())
    return {
        "seconds": round(sum(run["time"].values()), 1),
        "stages": run["time"],
        "peak_bytes": run["peak_memory_bytes"],
        "weight_bytes": results["sizes"]["dense_bytes"],
        "pruned_weights": results["budget"]["total"],
        "tokens": results["calibration"]["tokens"],
    }


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["gemma"])
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--scorers", nargs="+", default=["wanda"])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, help="a folder")
    args = parser.parse_args()
    for name in args.models:
        folder = models.find(name).folder
        readable = (folder / "tokenizer.json").is_file()
        for scorer in args.scorers:
            flags = ["--scorer", scorer, "--sparsity", "0.5"]
            source = args.calibration if readable else "synthetic"
            text = ["--calibration", source]
            sizes = ["--num-samples", str(args.samples), "--seq-len", str(args.length)]
            cost = measure(folder, [*flags, *text, *sizes], args.threads)
            row = {
                "benchmark": "pruning_cost",
                "model": folder.name,
                "scorer": scorer,
                "samples": args.samples,
                "length": args.length,
                **cost,
                "threads": args.threads,
            }
            rows.append("pruning_cost", [row], folder=args.results)
            print(
                f"{folder.name} {scorer}: {cost['seconds']} s, peak "
                f"{cost['peak_bytes'] / 1e9:.2f} GB for "
                f"{cost['weight_bytes'] / 1e9:.2f} GB of weights",
                flush=True,
            )


if __name__ == "__main__":
    main()
