"""Tables of ``docs/canary.md``: what the canary costs, and what it says."""

from __future__ import annotations

from typing import Any

import rows


def cost() -> str:
    """Return what a canary takes of decode steps, by share of sampled ones."""
    keys = ("model", "pattern", "compiled", "batch", "threads", "hardware")
    found = rows.newest("canary_cost", *keys)
    if not found:
        return "No rows yet: `benchmarks/canary_cost.py` makes them."
    shares = [f"share {share}" for share in found[0]["cost"]]
    lines = [
        "| model | pattern | mode | batch | tapped layers | step | all taps, no sample "
        f"| sampled step | {' | '.join(shares)} | measured |",
        "|---" * (9 + len(shares)) + "|",
    ]
    for row in sorted(found, key=lambda r: tuple(r[key] for key in keys)):
        costs = [f"{100 * cost:.2f} %" for cost in row["cost"].values()]
        lines.append(
            f"| {row['model']} | {row['pattern']} | "
            f"{'compiled' if row['compiled'] else 'eager'} | {row['batch']} | "
            f"{row['tapped_layers']} of {row['sparse_layers']} | "
            f"{row['step_ms']:.1f} ms | {row['taps_us']:.0f} us | "
            f"{row['sampled_more_ms']:+.1f} ms ({row['sampled_more_ms_p20']:.1f} to "
            f"{row['sampled_more_ms_p80']:.1f}) | {' | '.join(costs)} | "
            f"{row['date']}, {row['threads']} thread(s), {row['hardware']} |"
        )
    return "\n".join(lines)


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
