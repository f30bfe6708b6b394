"""One number a block: bars, curves side by side, and one panel a profile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    percent_ticks,
)

# Beyond this many blocks markers run into each other: every second, third, ... only.
_MARKERS_FROM = 24
_NO_EFFECT = 1.0
# From this ratio of the largest to the smallest value, an axis is logarithmic.
_LOG_FROM = 30.0
_LEGEND_COLUMNS = 5


def block_bars(shares: Sequence[float], *, target: float) -> Figure:
    """Draw the share removed from each block, and the target as a line."""
    figure = new_figure(2.6)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(axis="y")
    axes.bar(range(len(shares)), shares, color=BLUE, width=0.8, label="removed")
    axes.axhline(
        target,
        color=RED,
        linewidth=1.4,
        linestyle="--",
        label=f"target {100 * target:.3g}%",
    )
    axes.set_title("Weights removed from each block")
    axes.set_ylabel("Removed")
    axes.set_ylim(0.0, max(1.0 if max(shares) > 0.75 else 0.0, 1.15 * max(shares)))
    if axes.get_ylim()[1] > 1.0:
        axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(percent_ticks())
    block_axis(axes, len(shares))
    _legend_above(axes)
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
    if "uniform" not in curves:
        label = f"target {100 * target:.3g}%"
        axes.axhline(target, color=GREY, linewidth=1.0, zorder=1, label=label)
    axes.set_title("Weights removed from each block, by allocator, same budget")
    axes.set_ylabel("Removed")
    axes.yaxis.set_major_formatter(percent_ticks())
    block_axis(axes, max(len(shares) for shares in curves.values()))
    _legend_below(axes)
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
        if _spreads(finite):
            axes.set_yscale("log")
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
    known = [
        (i, dense) for i, (dense, _) in enumerate(scores.values()) if dense is not None
    ]
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
    axes.set_title("Score of each task, dense and pruned")
    axes.set_xlabel("Score")
    axes.xaxis.set_major_formatter(percent_ticks())
    axes.tick_params(axis="y", length=0)
    _legend_above(axes)
    return figure


def _marked(count: int) -> int:
    """Return every how many points a marker stands."""
    return max(1, round(count / _MARKERS_FROM))


def _spreads(values: Sequence[float]) -> bool:
    """Return whether only a logarithm shows both the small and the large values."""
    known = [value for value in values if math.isfinite(value)]
    return bool(known) and min(known) > 0 and max(known) / min(known) >= _LOG_FROM


def _legend_above(axes: Axes) -> None:
    """Put a legend of two beside the title, where it covers no data."""
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=2,
        handlelength=2.6,
        borderaxespad=0.2,
    )


def _legend_below(axes: Axes) -> None:
    """Put a legend of many below the axis."""
    count = len(axes.get_legend_handles_labels()[1])
    # As many rows as needed, of equal length.
    rows = -(-count // _LEGEND_COLUMNS)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=-(-count // rows),
        handlelength=2.6,
        columnspacing=1.6,
        borderaxespad=0.2,
    )
