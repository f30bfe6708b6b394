"""Make the tables of README.md and docs/ from result rows and code, or ``--check``.

The newest row of each setting is shown. Losing rows are shown like winning ones.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import canary_tables
import gpu_tables
import group_tables
import kernel_tables
import losing_tables
import metric_tables
import online_policies
import online_tables
import plan_tables
import pruning_tables
import rows
import serve_tables
import zero_shot

ROOT = Path(__file__).parent.parent


def decode_table() -> str:
    """Return decode speed relative to stock vLLM, one line a model and mode."""
    lines: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for row in rows.newest("decode", "model", "threads", "mode", "batch", "hardware"):
        if isinstance(row["threads"], int) and row["mode"] != "stock":
            where = (row["model"], row["threads"], row["mode"], row["hardware"])
            lines.setdefault(where, {})[row["batch"]] = row
    batches = sorted({batch for found in lines.values() for batch in found})
    head = [f"batch {batch}" for batch in batches]
    table = [
        f"| model | threads | mode | {' | '.join(head)} | measured |",
        "|---" * (len(head) + 4) + "|",
    ]
    for (model, threads, mode, hardware), found in lines.items():
        cells = [_cell(found.get(batch)) for batch in batches]
        date = max(row["date"] for row in found.values())
        table.append(
            f"| {model} | {threads} | {mode} | {' | '.join(cells)} | {date}, "
            f"{hardware} |"
        )
    return "\n".join(table)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    low, middle, high = (row[f"speed_vs_stock_p{p}"] for p in (20, 50, 80))
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def quality_table() -> str:
    """Return perplexity through the engine."""
    lines = [
        "| model | text | pattern, all decoder linears, phase both | perplexity | "
        "measured |",
        "|---|---|---|---|---|",
    ]
    for row in rows.newest("perplexity", "model", "text", "windows", "length", "mode"):
        text = f"{row['text']}, {row['windows']} windows of {row['length']}"
        lines.append(
            f"| {row['model']} | {text} | {row['mode']} | {row['perplexity']:.1f} | "
            f"{row['date']}, {row['hardware']} |"
        )
    return "\n".join(lines)


# Every table is in one place, between its markers in README.md or a page of docs/.
TABLES = {
    "decode": decode_table,
    "quality": quality_table,
    "decode-losing": losing_tables.decode,
    "kernels-losing": losing_tables.kernels,
    "kernels": kernel_tables.one_token,
    "kernels-tokens": kernel_tables.more_tokens,
    "kernels-union": kernel_tables.union_law,
    "kernels-selection": kernel_tables.selection,
    "gpu-roofline": gpu_tables.roofline,
    "gpu-launches": gpu_tables.launches,
    "gpu-kernels": gpu_tables.kernels,
    "gpu-decode": gpu_tables.decode,
    "plan-ceilings": plan_tables.ceilings,
    "metrics": metric_tables.catalog,
    "metric-labels": metric_tables.labels,
    "metric-fallbacks": metric_tables.reasons,
    "metrics-cost": metric_tables.cost,
    "online-setup": online_tables.setup_text,
    "online-settings": online_tables.settings_table,
    "online-groups": group_tables.limits,
    "online-policies": online_policies.table,
    "online-budgets": online_tables.budgets_table,
    "online-weights": online_tables.weights_table,
    "pruning-setup": pruning_tables.setup_text,
    "pruning-scorers": pruning_tables.scorers_table,
    "pruning-allocations": pruning_tables.allocations_table,
    "pruning-compensations": pruning_tables.compensations_table,
    "pruning-seeds": pruning_tables.seeds_table,
    "pruning-cost": pruning_tables.cost_table,
    "zero-shot": zero_shot.table,
    "serve-load": serve_tables.load,
    "soak": serve_tables.soak,
    "canary-cost": canary_tables.cost,
    "canary-values": canary_tables.values,
}
_MARKED = re.compile(
    r"(<!-- table:(?P<name>[\w-]+) -->).*?(<!-- /table:(?P=name) -->)", re.DOTALL
)


def render(text: str, found: Counter[str]) -> str:
    """Return a page with every table between its markers replaced; count the tables."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise SystemExit(f"table:{name} is unknown. Expected {', '.join(TABLES)}.")
        found[name] += 1
        return f"{match[1]}\n{TABLES[name]()}\n{match[3]}"

    return _MARKED.sub(table, text)


def pages() -> list[Path]:
    """Return the files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> int:
    """Write or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    found: Counter[str] = Counter()
    old = {page: page.read_text(encoding="utf-8") for page in pages()}
    new = {page: render(text, found) for page, text in old.items()}
    for name in TABLES:
        if found[name] != 1:
            raise SystemExit(f"table:{name} has {found[name]} places. Expected 1.")
    changed = [page for page in new if new[page] != old[page]]
    for page in changed:
        if check:
            name = page.relative_to(ROOT)
            sys.stderr.write(f"{name}: tables differ from rows: run tables.py\n")
        else:
            page.write_text(new[page], encoding="utf-8")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
