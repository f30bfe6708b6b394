"""Tables of docs/online-results.md, from the rows of ``online.py``."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import Any

import rows

NAIVE = "8:16"
_KEY = ("model", "text", "windows", "length", "setting", "seed", "samples")


def setup_text() -> str:
    """Return a sentence about what was measured."""
    found = rows.newest("online", *_KEY)
    if not found:
        return "No rows."
    parts = []
    for row in {(r["model"], r["text"]): r for r in found}.values():
        parts.append(
            f"{row['model']}: dense perplexity {row['dense_perplexity']:.2f}, of the "
            f"second half of windows {row['dense_decode_perplexity']:.2f}. Judged on "
            f"{row['windows']} windows of {row['length']} tokens of {row['text']}; "
            f"calibrated on {row['samples']} windows of {row['calibration']}. "
            f"{row['date']}, {row['hardware']}."
        )
    return "\n".join(parts)


def settings_table() -> str:
    """Return one line a setting: bytes, perplexity, share of the gap that is closed."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows.newest("online", *_KEY):
        found[row["model"], row["setting"]].append(row)
    lines = [
        "| model | setting | bytes read | perplexity, all tokens sparse | gap closed | "
        "decode perplexity, decode sparse | KL | same likeliest token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (model, setting), runs in found.items():
        naive = found.get((model, NAIVE))
        values = [row["perplexity"] for row in runs]
        spread = ""
        if len(runs) > 1:
            spread = f" ({min(values):.2f} to {max(values):.2f}, {len(runs)} seeds)"
        lines.append(
            f"| {model} | {setting} | {100 * _mean(runs, 'read_share'):.1f}% | "
            f"{statistics.mean(values):.2f}{spread} | {_closed(runs, naive)} | "
            f"{_mean(runs, 'decode_perplexity'):.2f} | "
            f"{_mean(runs, 'decode_kl'):.3f} | "
            f"{100 * _mean(runs, 'decode_top1_agreement'):.1f}% |"
        )
    return "\n".join(lines)


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(row[key] for row in runs)


def _closed(runs: list[dict[str, Any]], naive: list[dict[str, Any]] | None) -> str:
    """Return the closed share of the gap in log-perplexity that naive 8:16 has."""
    if not naive:
        return ""
    dense = math.log(runs[0]["dense_perplexity"])
    gap = math.log(naive[0]["perplexity"]) - dense
    mine = statistics.mean(math.log(row["perplexity"]) for row in runs) - dense
    return f"{100 * (1 - mine / gap):.0f}%"
