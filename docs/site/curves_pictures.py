"""Curves: the union law beside measured rows, and quality over bytes read."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import style
from matplotlib import pyplot
from matplotlib.ticker import FixedLocator, FuncFormatter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))
import online_tables
import rows

_PATTERNS = {"8:16": 0.5, "4:16": 0.25}


def draw_union(folder: Path) -> Path:
    """Draw ``union.svg``: the law as lines, rows of kernel_speed.py as points."""
    figure, axes = pyplot.subplots(figsize=(6.6, 3.9), layout="constrained")
    counts = [1, 2, 4, 8, 16]
    for (pattern, density), color in zip(
        _PATTERNS.items(), (style.KEPT, style.ACCENT), strict=True
    ):
        law = [1 - (1 - density) ** count for count in counts]
        axes.plot(counts, law, color=color, label=f"{pattern}: 1 - (1 - d)^T")
        measured = _rows_read(pattern)
        axes.plot(
            list(measured),
            list(measured.values()),
            "o",
            color=color,
            label=f"{pattern}: rows that were read",
        )
    axes.axhline(0.3 + 1 / 16, color=style.GREEN, linestyle="--")
    axes.text(
        2.25, 0.3, "packed weight, 70% zeros: the same for every batch", fontsize=9
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlabel("tokens in a step, T")
    axes.set_ylabel("weight bytes read, of dense")
    axes.legend(fontsize=9, frameon=False, loc="lower right")
    axes.grid(alpha=0.25)
    return style.save(figure, "union", folder)


def _rows_read(pattern: str) -> dict[int, float]:
    """Return the median over layers of the share of rows read, by tokens."""
    found: dict[int, list[float]] = {}
    for row in rows.newest("kernels", "shape", "threads", "tokens", "mode", "hardware"):
        if row["mode"] == pattern:
            dense = row["K"] * row["O"] * 2
            found.setdefault(row["tokens"], []).append(row["bytes_read"] / dense)
    return {count: statistics.median(found[count]) for count in sorted(found)}


def draw_quality(folder: Path) -> Path:
    """Draw ``quality.svg``: perplexity over bytes, from rows of online.py."""
    found = {row["setting"]: row for row in rows.newest("online", *online_tables._KEY)}
    figure, axes = pyplot.subplots(figsize=(6.6, 4.2), layout="constrained")
    uniform = ["row uniform 0.3", "row uniform 0.4", "50%", "row uniform 0.6"]
    uniform.append("row uniform 0.75")
    allocated = [f"row final {share}" for share in (0.3, 0.4, 0.5, 0.6, 0.75)]
    for names, label, color in (
        (uniform, "whole rows, the same density everywhere", style.ACCENT),
        (allocated, "whole rows, a density for each layer", style.KEPT),
    ):
        axes.plot(
            [found[name]["read_share"] for name in names],
            [found[name]["perplexity"] for name in names],
            marker="o",
            color=color,
            label=label,
        )
    patterns = ("2:4", "4:8", "8:16", "16:32", "12:16")
    axes.plot(
        [found[name]["read_share"] for name in patterns],
        [found[name]["perplexity"] for name in patterns],
        "s",
        color=style.GREEN,
        label="N:M, the same pattern everywhere",
    )
    for name in patterns:
        row = found[name]
        axes.annotate(
            name,
            (row["read_share"], row["perplexity"]),
            xytext=(7, -3),
            textcoords="offset points",
            fontsize=9,
        )
    dense = found["8:16"]["dense_perplexity"]
    axes.axhline(dense, color=style.MUTED, linestyle="--", linewidth=1)
    axes.text(0.295, dense * 1.04, f"dense, {dense:.1f}", fontsize=9)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([20, 30, 50, 100, 160]))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlabel("weight bytes a sparse token reads, of dense")
    axes.set_ylabel("perplexity, all tokens sparse")
    row = found["8:16"]
    axes.set_title(
        f"Gemma 3 270M, {row['windows']} windows of {row['length']} tokens of "
        f"{row['text']}",
        fontsize=9.5,
    )
    axes.legend(fontsize=9, frameon=False)
    axes.grid(alpha=0.25)
    return style.save(figure, "quality", folder)
