"""Make the README's tables from result rows; ``--check`` fails if they differ.

The newest row of each setting is shown. Losing rows are shown like winning ones.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import rows

README = Path(__file__).parent.parent / "README.md"


def newest(name: str, *keys: str) -> list[dict[str, Any]]:
    """Return the newest row of every combination of ``keys``, in order of keys."""
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows.read(name):
        latest[tuple(row[key] for key in keys)] = row
    return list(latest.values())


def decode_table() -> str:
    """Return decode speed relative to stock vLLM."""
    lines = [
        "| model | batch | mode | backend | speed against stock (p20 to p80) | "
        "measured |",
        "|---|---|---|---|---|---|",
    ]
    for row in newest("decode", "model", "batch", "mode", "hardware"):
        low, middle, high = (row[f"speed_vs_stock_p{p}"] for p in (20, 50, 80))
        lines.append(
            f"| {row['model']} | {row['batch']} | {row['mode']} | {row['backend']} | "
            f"{middle:.2f}x ({low:.2f} to {high:.2f}) | {row['date']}, "
            f"{row['hardware']} |"
        )
    return "\n".join(lines)


def quality_table() -> str:
    """Return perplexity through the engine."""
    lines = [
        "| model | text | pattern, all decoder linears, phase both | perplexity | "
        "measured |",
        "|---|---|---|---|---|",
    ]
    for row in newest("perplexity", "model", "text", "windows", "length", "mode"):
        text = f"{row['text']}, {row['windows']} windows of {row['length']}"
        lines.append(
            f"| {row['model']} | {text} | {row['mode']} | {row['perplexity']:.1f} | "
            f"{row['date']}, {row['hardware']} |"
        )
    return "\n".join(lines)


TABLES = {"decode": decode_table, "quality": quality_table}


def render(text: str) -> str:
    """Return the README with every table between its markers replaced."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- table:{name} -->).*?(<!-- /table:{name} -->)"
        table = make()
        text, found = re.subn(
            pattern, lambda m, t=table: f"{m[1]}\n{t}\n{m[2]}", text, flags=re.DOTALL
        )
        if found != 1:
            raise SystemExit(f"README.md has {found} markers table:{name}. Expected 1.")
    return text


def main() -> int:
    """Write or check the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = render(old)
    if check:
        if new != old:
            sys.stderr.write("README.md tables differ from rows: run tables.py\n")
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
