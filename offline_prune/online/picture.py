"""The picture of a calibration: share read by every layer, one line a kind."""

from __future__ import annotations

from collections import defaultdict
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

from offline_prune.online.results import CalibrationRecord
from offline_prune.report.canvas import (
    COLORS,
    GREY,
    MARKERS,
    STYLES,
    block_axis,
    new_figure,
    percent_ticks,
    save,
    style,
)
from offline_prune.report.pictures import Picture

PICTURE = Picture(
    "calibration",
    "Share of its weight that a layer reads for a sparse token; dotted: all of them.",
)


def write_picture(folder: Path, record: CalibrationRecord) -> None:
    """Draw, and write ``figures/calibration.png`` and ``.svg``."""
    with style():
        save(draw(record), folder, PICTURE.name)


def draw(record: CalibrationRecord) -> Figure:
    """Return the picture."""
    kinds: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for layer in record.layers:
        kind = layer.name.rpartition(".")[2]
        kinds[kind].append((layer.block, layer.read_bytes / layer.dense_bytes))
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    axes.grid(axis="y")
    looks = cycle(zip(COLORS, MARKERS, STYLES, strict=True))
    for kind, points in kinds.items():
        color, marker, line = next(looks)
        axes.plot(
            [block for block, _ in points],
            [share for _, share in points],
            color=color,
            marker=marker,
            linestyle=line,
            markersize=4,
            label=kind,
        )
    axes.axhline(record.read_share, color=GREY, linewidth=1.0, linestyle=":")
    axes.set_ylim(0.0, 1.05)
    axes.set_ylabel("Weight bytes read")
    axes.set_title("What a sparse token reads of every layer")
    axes.yaxis.set_major_formatter(percent_ticks())
    block_axis(axes, 1 + max(layer.block for layer in record.layers))
    axes.legend(ncols=4, loc="lower center", frameon=False)
    return figure
