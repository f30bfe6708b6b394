"""Tables of docs/pruning-results.md from the rows of ``pruning.py``."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pruning_settings
import rows

_KEYS = ("model", "setting", "seed", "calibration", "samples", "length", "text")


def _found() -> dict[str, dict[int, dict[str, Any]]]:
    """Return the newest row of every setting and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows.newest("pruning", *_KEYS):
        found[row["setting"]][row["seed"]] = row
    return found


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:.3g}"


def _cell(found: dict[str, dict[int, dict[str, Any]]], setting: str) -> str:
    row = found.get(setting, {}).get(0)
    return "" if row is None else _number(row["perplexity"])


def scorers_table() -> str:
    """Return perplexity of every scorer at every budget."""
    found = _found()
    budgets = (*pruning_settings.SHARES, *pruning_settings.PATTERNS)
    lines = [f"| scorer | {' | '.join(budgets)} |", "|---" * (len(budgets) + 1) + "|"]
    for scorer in pruning_settings.SCORERS:
        cells = [_cell(found, f"{scorer} {budget}") for budget in budgets]
        lines.append(f"| {scorer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def allocations_table() -> str:
    """Return perplexity of every allocation on Wanda."""
    found = _found()
    lines = ["| Wanda with | 60% | 70% |", "|---|---|---|"]
    names = ["", *_names(pruning_settings.allocations(), "wanda ")]
    for name in names:
        setting = f"wanda {name} " if name else "wanda "
        cells = [_cell(found, f"{setting}{budget}") for budget in ("60%", "70%")]
        lines.append(f"| {name or 'uniform'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compensations_table() -> str:
    """Return perplexity with every compensation, on Wanda and CVR."""
    found = _found()
    budgets = ("50%", "2:4")
    heads = [f"{s} {b}" for s in ("wanda", "cvr") for b in budgets]
    lines = [f"| with | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    names = ["", *_names(pruning_settings.compensations(), "wanda ")]
    for name in names:
        cells = []
        for scorer in ("wanda", "cvr"):
            for budget in budgets:
                setting = f"{scorer} {name} {budget}" if name else f"{scorer} {budget}"
                cells.append(_cell(found, setting))
        lines.append(f"| {name or 'nothing'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seeds_table() -> str:
    """Return mean and range over calibration seeds."""
    found = _found()
    lines = [
        "| setting | seeds | mean | least | greatest | dense |",
        "|---|---|---|---|---|---|",
    ]
    for setting in pruning_settings.seeds():
        mine = found.get(setting, {})
        if len(mine) < 2:
            continue
        values = [row["perplexity"] for row in mine.values()]
        dense = next(iter(mine.values()))["dense_perplexity"]
        numbers = (sum(values) / len(values), min(values), max(values), dense)
        lines.append(
            f"| {setting} | {len(values)} | {' | '.join(map(_number, numbers))} |"
        )
    return "\n".join(lines)


def cost_table() -> str:
    """Return time and peak memory against the size of the model."""
    lines = [
        "| model | weights | scorer | calibration tokens | threads | seconds | "
        "peak memory | measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.newest("pruning_cost", "model", "scorer", "tokens", "threads"):
        lines.append(
            f"| {row['model']} | {row['weight_bytes'] / 1e9:.2f} GB | {row['scorer']} "
            f"| {row['tokens']:,} | {row['threads']} | {row['seconds']:.0f} | "
            f"{row['peak_bytes'] / 1e9:.2f} GB | {row['date']} |"
        )
    return "\n".join(lines)


def setup_text() -> str:
    """Return one paragraph: what was pruned, on what, judged by what."""
    every = [row for mine in _found().values() for row in mine.values()]
    if not every:
        return "No rows yet."
    row = every[0]
    dates = sorted({one["date"] for one in every})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"{row['model']}, dense perplexity {row['dense_perplexity']:.2f}. Calibration: "
        f"{row['samples']} windows of {row['length']} tokens of {row['calibration']}. "
        f"Judged on {row['windows']} windows of {row['length']} tokens of "
        f"{row['text']}. {len(every)} runs, {when}, {row['hardware']}."
    )


def _names(settings: dict[str, Any], prefix: str) -> list[str]:
    """Return the middle parts of setting names, each once, in order."""
    names: list[str] = []
    for setting in settings:
        if setting.startswith(prefix):
            name = setting.removeprefix(prefix).rpartition(" ")[0]
            if name not in names:
                names.append(name)
    return names
