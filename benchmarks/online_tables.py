"""Tables of docs/online-results.md, from the rows of ``online.py``."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import Any

import rows

NAIVE = "8:16"
MODEL = "gemma-3-270m"
SCORERS = ("wanda", "sparsegpt")
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


def _first_seed(name: str) -> list[dict[str, Any]]:
    """Return the newest row of every setting, of seed 0."""
    return [r for r in rows.newest(name, "model", "setting", "seed") if not r["seed"]]


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


def weights_table() -> str:
    """Return perplexities at equal sparsity: of activations online, of weights offline.

    Both judged on the same windows of the same text, which is checked.
    """
    pruned = {r["setting"]: r for r in _first_seed("pruning") if r["model"] == MODEL}
    online = {r["setting"]: r for r in _first_seed("online") if r["model"] == MODEL}
    lines = [
        "| sparsity | activations, magnitude | weights, Wanda | weights, SparseGPT |",
        "|---|---|---|---|",
    ]
    for pattern in ("50%", "8:16", "4:8", "2:4"):
        kinds = [online.get(pattern), *(pruned.get(f"{s} {pattern}") for s in SCORERS)]
        found = [r for r in kinds if r is not None]
        texts = {(r["text"], r["windows"], r["length"]) for r in found}
        if len(texts) > 1:
            raise SystemExit(f"{pattern}: rows of several texts: {texts}.")
        cells = ["" if r is None else f"{r['perplexity']:.2f}" for r in kinds]
        lines.append(f"| {pattern} | {' | '.join(cells)} |")
    return "\n".join(lines)


def budgets_table() -> str:
    """Return perplexities by share of bytes: every layer alike, and allocated."""
    found: dict[float, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in _first_seed("online"):
        kind, _, share = row["setting"].rpartition(" ")
        if row["model"] == MODEL and kind in ("row uniform", "row final"):
            found[float(share)][kind] = row
        elif row["model"] == MODEL and row["setting"] == "50%":
            found[0.5]["row uniform"] = row
    lines = [
        "| bytes read | uniform rows | allocated rows | uniform, decode only | "
        "allocated, decode only |",
        "|---|---|---|---|---|",
    ]
    for share, kinds in sorted(found.items()):
        both = [kinds.get(kind) for kind in ("row uniform", "row final")]
        cells = [
            "" if row is None else f"{row[key]:.2f}"
            for key in ("perplexity", "decode_perplexity")
            for row in both
        ]
        lines.append(f"| {100 * share:.0f}% | {' | '.join(cells)} |")
    return "\n".join(lines)
