"""Table of docs/online-results.md: what groups of channels can gain."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

import rows

NAMES = ("consecutive", "balanced", "searched", "row")


def limits() -> str:
    """Return the share of a token's energy that is dropped, by kind of layer."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows.newest("group_limits", "model", "layer", "pattern", "calibration"):
        kind = row["layer"].rpartition(".")[2].removesuffix("_proj")
        found[row["model"], row["pattern"], kind].append(row)
    if not found:
        return "No rows yet: `benchmarks/group_limits.py` makes them."
    lines = [
        "| model | pattern | layers | consecutive | balanced | searched | whole rows "
        "| measured |",
        "|---" * 8 + "|",
    ]
    for (model, pattern, kind), layers in found.items():
        means = (
            statistics.mean(row[f"dropped_{name}"] for row in layers) for name in NAMES
        )
        cells = " | ".join(f"{100 * mean:.2f} %" for mean in means)
        first = layers[0]
        blocks = f"{len(layers)} block{'s' if len(layers) > 1 else ''}"
        lines.append(
            f"| {model} | {pattern} | {kind}, {blocks} | {cells} | "
            f"{first['tokens']:,} tokens of {first['calibration']}, {first['date']} |"
        )
    return "\n".join(lines)
