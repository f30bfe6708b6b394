"""The table of docs/sizing.md: what bytes allow, beside what was measured."""

from __future__ import annotations

from typing import Any

import rows
from gpu_models import Linear, linears

from vllm_sparse.plan.traffic import DENSE, MAX_TOKENS, Form, lists, packed

# Names in the rows of decode.py, and in gpu_models.py.
_MODELS = {
    "llama-1b-random": "llama-1b",
    "qwen-0.5b-random": "qwen-0.5b",
    "gemma-3-270m": "gemma-270m",
}
_FORMS: dict[str, Form] = {
    "8:16": lists(1 / 2),
    "4:16": lists(1 / 4),
    "pruned 70%": packed(0.3),
}


def ceiling(model: str, mode: str, tokens: int) -> float:
    """Return the ceiling of bytes: of linear layers and the head, without a cache.

    Args:
        model: name in the rows.
        mode: likewise.
        tokens: T, those of a step.
    """
    form = _FORMS[mode] if tokens <= MAX_TOKENS else DENSE
    found = linears(_MODELS[model])
    read = sum(x.count * _of(x, form).read(x, tokens) for x in found)
    return sum(x.count * x.dense_bytes for x in found) / read


def _of(linear: Linear, form: Form) -> Form:
    return DENSE if linear.is_head else form


def ceilings() -> str:
    """Return a line a setting: the ceiling, then the median that was measured."""
    lines: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for row in rows.newest("decode", "model", "threads", "mode", "batch", "hardware"):
        known = row["model"] in _MODELS and row["mode"] in _FORMS
        if known and isinstance(row["threads"], int):
            where = (row["model"], row["threads"], row["mode"], row["hardware"])
            lines.setdefault(where, {})[row["batch"]] = row
    batches = sorted({batch for found in lines.values() for batch in found})
    head = [f"batch {batch}" for batch in batches]
    table = [
        f"| model | threads | mode | {' | '.join(head)} | measured |",
        "|---" * (len(head) + 4) + "|",
    ]
    for (model, threads, mode, hardware), found in lines.items():
        cells = [_cell(model, mode, batch, found.get(batch)) for batch in batches]
        date = max(row["date"] for row in found.values())
        table.append(
            f"| {model} | {threads} | {mode} | {' | '.join(cells)} | {date}, "
            f"{hardware} |"
        )
    return "\n".join(table)


def _cell(model: str, mode: str, tokens: int, row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    speed = row["speed_vs_stock_p50"]
    return f"{ceiling(model, mode, tokens):.2f}x / {speed:.2f}x"
