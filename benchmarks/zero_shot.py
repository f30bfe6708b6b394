"""Zero-shot scores of a changed model beside the dense one: rows from what eval wrote.

    offline-prune eval pruned --dense model --tasks piqa,arc_easy
    python benchmarks/zero_shot.py pruned/results.json --setting "sparsegpt 50%"
    vllm-sparse eval calibrated --dense --tasks piqa arc_easy --output engine.json
    python benchmarks/zero_shot.py engine.json --setting "rows-50, all tokens sparse"

Nothing is run here: both commands score dense and changed models on one backend.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rows

# The score that papers print, where a task has several.
METRICS = ("acc_norm", "acc")


def pruned_scores(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the scores in ``results.json`` of a pruned folder."""
    for part in results["evaluation"]:
        if part["kind"] != "zero_shot":
            continue
        tasks = sorted({score["task"] for score in part["scores"]})
        for task in tasks:
            mine = {x["metric"]: x for x in part["scores"] if x["task"] == task}
            score = next((mine[m] for m in METRICS if m in mine), None)
            if score is not None and score["dense"] is not None:
                yield {
                    "backend": part["backend"],
                    "task": task,
                    "metric": score["metric"],
                    "dense": score["dense"],
                    "score": score["pruned"],
                    "stderr": score["pruned_stderr"],
                    "examples": score["examples"],
                }


def engine_scores(results: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    """Yield the scores in what ``vllm-sparse eval`` wrote: dense, then one mode."""
    modes = {mode["mode"]: mode["tasks"] for mode in results["modes"]}
    dense = modes.pop("dense")
    ((name, changed),) = modes.items()
    for task in sorted(dense):
        metric = next(m for m in METRICS if m in dense[task])
        yield {
            "backend": f"vLLM {results['versions']['vllm']}, phase {name}",
            "task": task,
            "metric": metric,
            "dense": dense[task][metric],
            "score": changed[task][metric],
            "stderr": changed[task].get(f"{metric}_stderr"),
            "examples": limit,
        }


def main() -> None:
    """Append rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="results.json, or eval's --output")
    parser.add_argument("--setting", required=True)
    parser.add_argument("--name", default="gemma-3-270m", help="model name in the rows")
    parser.add_argument("--limit", type=int, default=0, help="that eval was given")
    parser.add_argument("--results", type=Path, help="a folder")
    args = parser.parse_args()
    data = json.loads(args.file.read_text("utf-8"))
    found = engine_scores(data, args.limit) if "modes" in data else pruned_scores(data)
    about = {"benchmark": "zero_shot", "model": args.name, "setting": args.setting}
    rows.append("zero_shot", [about | row for row in found], folder=args.results)


def table() -> str:
    """Return a line a setting, with dense and changed scores of every task."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows.newest("zero_shot", "model", "setting", "task"):
        found.setdefault((row["model"], row["setting"]), {})[row["task"]] = row
    if not found:
        return "Nothing measured yet."
    tasks = sorted({task for scores in found.values() for task in scores})
    lines = [
        f"| model | setting | backend | {' | '.join(tasks)} | mean |",
        "|---" * (len(tasks) + 4) + "|",
    ]
    for (model, setting), scores in found.items():
        cells = [_cell(scores.get(task)) for task in tasks]
        shared = list(scores.values())
        means = [sum(x[k] for x in shared) / len(shared) for k in ("dense", "score")]
        backend = shared[0]["backend"]
        lines.append(
            f"| {model} | {setting} | {backend} | {' | '.join(cells)} | "
            f"{means[0]:.3f} to {means[1]:.3f} |"
        )
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['dense']:.2f} to {row['score']:.2f}"


if __name__ == "__main__":
    main()
