"""One number a layer: a map of decoder blocks by kinds of layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator

from offline_prune.report.canvas import (
    COLOR_MAP,
    WIDTH,
    block_axis,
    new_figure,
    percent_ticks,
)
from offline_prune.report.layers import LayerResult

# From this ratio of the largest to the smallest, colours follow the logarithm.
_LOG_FROM = 30.0


def heat_map(
    layers: Sequence[LayerResult],
    value: Callable[[Sequence[LayerResult]], float | None],
    *,
    title: str,
    label: str,
    percent: bool,
) -> Figure:
    """Draw a map.

    Args:
        layers: of the model.
        value: of the layers of one kind in one block: one layer, or all experts. None
            leaves the field empty.
        title: of the figure.
        label: of the colours, with the unit.
        percent: whether values are shares, shown in percent.
    """
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    blocks = max(layer.block for layer in layers) + 1
    members: dict[tuple[int, int], list[LayerResult]] = {}
    for layer in layers:
        key = kinds.index(layer.kind), layer.block
        members.setdefault(key, []).append(layer)
    grid = np.full((len(kinds), blocks), np.nan)
    for key, found in members.items():
        number = value(found)
        grid[key] = np.nan if number is None or not math.isfinite(number) else number
    figure = new_figure(1.15 + 0.23 * len(kinds), width=WIDTH)
    axes = figure.add_subplot()
    colors = matplotlib.colormaps[COLOR_MAP].with_extremes(bad="#E6E6E6")
    mesh = axes.pcolormesh(
        np.arange(blocks + 1) - 0.5,
        np.arange(len(kinds) + 1) - 0.5,
        grid,
        cmap=colors,
        norm=_norm(grid),
        edgecolors="white",
        linewidth=0.6 if blocks <= 48 else 0.3,
    )
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set_facecolor("#E6E6E6")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    block_axis(axes, blocks)
    axes.set_xlim(-0.5, blocks - 0.5)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=12)
    bar.outline.set_visible(False)
    bar.set_label(label)
    if isinstance(mesh.norm, LogNorm):
        bar.locator = LogLocator(subs=(1.0, 2.0, 5.0))
        bar.formatter = LogFormatter(labelOnlyBase=False, minor_thresholds=(9, 9))
        bar.minorticks_off()
    if percent:
        bar.formatter = percent_ticks()
    bar.update_ticks()
    return figure


def _norm(grid: np.ndarray) -> Normalize:
    """Return how values become colours."""
    found = grid[np.isfinite(grid)]
    if not found.size:
        return Normalize(0.0, 1.0)
    low, high = float(found.min()), float(found.max())
    if low > 0.0 and high / low >= _LOG_FROM:
        return LogNorm(low, high)
    if high == low:
        return Normalize(low - 0.5, high + 0.5)
    return Normalize(low, high)
