"""Tables of docs/when-not.md: what was slower than stock vLLM, from the newest rows."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import kernel_tables
import rows

_MODES = ("8:16", "4:16", "2:4", "8:16 per token lists", "packed 50%", "packed 70%")


def decode() -> str:
    """Return settings of whole models with a median below 1."""
    lines = [
        "| model | threads | mode | batch | speed | kernels | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows.newest("decode", "model", "threads", "mode", "batch", "hardware"):
        if row["mode"] == "stock" or row["speed_vs_stock_p50"] >= 1:
            continue
        low, middle, high = (row[f"speed_vs_stock_p{p}"] for p in (20, 50, 80))
        ours = "ours" if isinstance(row["threads"], int) else "none"
        lines.append(
            f"| {row['model']} | {row['threads']} | {row['mode']} | {row['batch']} | "
            f"{middle:.2f}x ({low:.2f} to {high:.2f}) | "
            f"{'-' if row['mode'] == kernel_tables.CONTROL else ours} | "
            f"{row['date']}, {row['hardware']} |"
        )
    return "\n".join(lines)


def kernels() -> str:
    """Return how many products of each mode lost, and the slowest, by tokens."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    every: list[dict[str, Any]] = kernel_tables.measured_last()
    for row in every:
        found[row["mode"]][row["tokens"]].append(row["speed_vs_stock_p50"])
    counts = sorted({count for tokens in found.values() for count in tokens})
    lines = [
        f"| mode | {' | '.join(f'T = {count}' for count in counts)} |",
        "|---" * (len(counts) + 1) + "|",
    ]
    for mode in (mode for mode in _MODES if mode in found):
        cells = [_cell(found[mode][count]) for count in counts]
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(speeds: list[float]) -> str:
    if not speeds:
        return ""
    lost = sum(speed < 1 for speed in speeds)
    return f"{lost} of {len(speeds)}, least {min(speeds):.2f}x"
