"""One number a block: bars, curves side by side, and one panel a profile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from offline_prune.report.canvas import (
    BLACK,
    BLUE,
    COLORS,
    GREY,
    MARKERS,
    RED,
    STYLES,
    block_axis,
    new_figure,
)

# Beyond this many blocks markers run into each other: every second, third, ... only.
_MARKERS_FROM = 24
_NO_EFFECT = 1.0


def block_bars(shares: Sequence[float], *, target: float) -> Figure:
    """Draw the share removed from each block, and the target as a line."""
    figure = new_figure(2.6)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(axis="y")
    axes.bar(range(len(shares)), shares, color=BLUE, width=0.8, label="removed")
    axes.axhline(
        target, color=RED, linewidth=1.4, linestyle="--", label=f"target {target:.1%}"
    )
    axes.set_title("Weights removed from each block")
    axes.set_ylabel("Removed")
    axes.set_ylim(0.0, max(1.0 if max(shares) > 0.75 else 0.0, 1.15 * max(shares)))
    if axes.get_ylim()[1] > 1.0:
        axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    block_axis(axes, len(shares))
    _legend_above(axes, 2)
    return figure


def allocation_curves(
    curves: Mapping[str, Sequence[float]], *, used: str | None, target: float
) -> Figure:
    """Draw the share that each allocator removes from each block.

    Args:
        curves: allocator to shares.
        used: the allocator whose shares were pruned; drawn on top, thick and black.
        target: share over all blocks.
    """
    figure = new_figure(3.6)
    axes = figure.add_subplot()
    axes.grid(axis="y")
    axes.axhline(target, color=GREY, linewidth=0.8, zorder=1)
    looks = cycle(zip(COLORS, MARKERS, STYLES, strict=True))
    for name, shares in curves.items():
        chosen = name == used
        color, marker, line = next(looks) if not chosen else (BLACK, "", "-")
        axes.plot(
            range(len(shares)),
            shares,
            color=color,
            marker=marker,
            markersize=4,
            markevery=_marked(len(shares)),
            linestyle=line,
            linewidth=2.4 if chosen else 1.2,
            zorder=3 if chosen else 2,
            label=f"{name} (used)" if chosen else name,
        )
    axes.set_title("Weights removed from each block, by allocator, same budget")
    axes.set_ylabel("Removed")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    block_axis(axes, max(len(shares) for shares in curves.values()))
    _legend_above(axes, 4)
    return figure


def profile_panels(profiles: Mapping[str, Sequence[float]]) -> Figure:
    """Draw one panel a profile: their units differ, so they share no axis."""
    figure = new_figure(0.55 + 1.45 * len(profiles))
    panels = figure.subplots(len(profiles), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values), color in zip(
        panels, profiles.items(), cycle(COLORS), strict=False
    ):
        finite = [value if math.isfinite(value) else math.nan for value in values]
        axes.grid(axis="y")
        axes.plot(
            range(len(values)),
            finite,
            color=color,
            marker="o",
            markersize=3.2,
            linewidth=1.3,
        )
        axes.set_title(name)
        if "amplification" in name.lower():
            axes.axhline(_NO_EFFECT, color=GREY, linewidth=0.8, linestyle="--")
        axes.margins(y=0.12)
    block_axis(panels[-1], max(len(values) for values in profiles.values()))
    return figure


def task_dots(scores: Mapping[str, tuple[float | None, float]]) -> Figure:
    """Draw the score of each task, dense and pruned, joined by a line.

    Args:
        scores: task to (dense, pruned).
    """
    figure = new_figure(1.0 + 0.27 * len(scores))
    axes = figure.add_subplot()
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    for row, (dense, pruned) in enumerate(scores.values()):
        if dense is not None:
            axes.plot([dense, pruned], [row, row], color=GREY, linewidth=1.6, zorder=1)
    rows = range(len(scores))
    known = [(i, dense) for i, (dense, _) in enumerate(scores.values()) if dense]
    axes.scatter(
        [x for _, x in known],
        [i for i, _ in known],
        s=46,
        facecolor="white",
        edgecolor=BLACK,
        linewidth=1.3,
        label="dense",
        zorder=2,
    )
    pruned_scores = [pruned for _, pruned in scores.values()]
    axes.scatter(pruned_scores, rows, s=40, color=BLUE, label="pruned", zorder=3)
    axes.set_yticks(rows, list(scores))
    axes.invert_yaxis()
    axes.margins(y=0.08)
    axes.set_title("Score of each task, without training")
    axes.set_xlabel("Score")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.tick_params(axis="y", length=0)
    _legend_above(axes, 2)
    return figure


def _marked(count: int) -> int:
    """Return every how many points a marker stands."""
    return max(1, round(count / _MARKERS_FROM))


def _legend_above(axes: Axes, columns: int) -> None:
    """Put the legend beside the title, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    single = len(labels) <= 2
    axes.legend(
        handles,
        labels,
        loc="lower right" if single else "upper center",
        bbox_to_anchor=(1.0, 1.0) if single else (0.5, -0.16),
        ncols=columns,
        handlelength=2.6,
        borderaxespad=0.2,
    )
