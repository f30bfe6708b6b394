"""One look for all pictures: colours, fonts, boxes, and files that do not change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMAGES = Path(__file__).resolve().parent.parent / "images"

KEPT = "#3f51b5"
KEPT_LIGHT = "#c9cff0"
DROPPED = "#d5d8de"
ACCENT = "#e07b39"
ACCENT_LIGHT = "#f8dfcd"
GREEN = "#2a8f7f"
GREEN_LIGHT = "#cfe9e4"
INK = "#22252b"
MUTED = "#6b7280"

matplotlib.rcParams.update(
    {
        # Drawn twice from the same data, a file is the same.
        "svg.hashsalt": "vllm-sparse",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
    }
)


def save(figure: Figure, name: str, folder: Path) -> Path:
    """Write a picture and forget it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    # Matplotlib ends lines with a blank where a path has no more points.
    lines = [line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty drawing with one unit an inch and no axes."""
    figure = pyplot.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes,
    at: tuple[float, float],
    size: tuple[float, float],
    text: str = "",
    *,
    face: str = "white",
    edge: str = MUTED,
    font: float = 9,
    title: str = "",
) -> None:
    """Draw a rounded box; ``title`` stands in its upper left corner."""
    axes.add_patch(
        FancyBboxPatch(
            at,
            *size,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=face,
            edgecolor=edge,
            linewidth=1,
        )
    )
    (x, y), (width, height) = at, size
    if text:
        axes.text(
            x + width / 2,
            y + height / 2,
            text,
            ha="center",
            va="center",
            fontsize=font,
            linespacing=1.35,
        )
    if title:
        axes.text(
            x + 0.12,
            y + height - 0.11,
            title,
            ha="left",
            va="top",
            fontsize=font,
            weight="bold",
        )


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    color: str = MUTED,
) -> None:
    """Draw an arrow."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            color=color,
            linewidth=1.2,
            shrinkA=0,
            shrinkB=0,
        )
    )
