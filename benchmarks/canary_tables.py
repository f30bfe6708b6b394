"""Tables of ``docs/canary.md``: what the canary costs, and what it says."""

from __future__ import annotations

from typing import Any

import rows


def cost() -> str:
    """Return decode speed with a canary relative to none, one line a share."""
    lines = [
        "| model | pattern | mode | batch | share | speed against no canary | sampled "
        "| measured |",
        "|---" * 8 + "|",
    ]
    keys = ("model", "pattern", "compiled", "batch", "share", "hardware")
    found = rows.newest("canary_cost", *keys)
    if not found:
        return "No rows yet: `benchmarks/canary_cost.py` makes them."
    for row in sorted(found, key=lambda r: _order(r, keys)):
        share = f"{100 * row['share']:g} %" if row["share"] else "none, again"
        steps = row["rounds"] * (row["tokens"] - 1)
        lines.append(
            f"| {row['model']} | {row['pattern']} | "
            f"{'compiled' if row['compiled'] else 'eager'} | {row['batch']} | {share} "
            f"| {row['speed_vs_without_total']:.3f}x "
            f"({row['speed_vs_without_p20']:.3f} to {row['speed_vs_without_p80']:.3f}) "
            f"| {row['tapped_layers']} of {row['sparse_layers']} layers, {steps} steps "
            f"| {row['date']}, {row['threads']} threads, {row['hardware']} |"
        )
    return "\n".join(lines)


def _order(row: dict[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[key] for key in keys)


def values() -> str:
    """Return mean error and distance of each kind of layer, one line a treatment."""
    found: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in rows.newest("canary_values", "model", "pattern", "treatment", "kind"):
        key = (row["model"], row["pattern"], row["treatment"])
        found.setdefault(key, {})[row["kind"]] = row
    kinds = list(dict.fromkeys(kind for by_kind in found.values() for kind in by_kind))
    lines = [
        f"| model | pattern | treatment | {' | '.join(kinds)} | measured |",
        "|---" * (4 + len(kinds)) + "|",
    ]
    for (model, pattern, treatment), by_kind in found.items():
        cells = [
            f"{by_kind[kind]['relative_error']:.3f}, "
            f"{by_kind[kind]['cosine_distance']:.3f}"
            for kind in kinds
        ]
        row = by_kind[kinds[0]]
        lines.append(
            f"| {model} | {pattern} | {treatment} | {' | '.join(cells)} | "
            f"{row['date']}, {row['prompts']} prompts of {row['tokens']} tokens |"
        )
    return "\n".join(lines)
