"""The look of all pictures, and how they are saved: PNG and SVG, byte for byte again.

Colours are those of Okabe and Ito, and the map cividis: both keep their order for
people who see colours differently. Lines differ in style and marker too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from offline_prune.report.pictures import FIGURES
from offline_prune.text_file import write_bytes

WIDTH: Final = 8.0
DOTS_PER_INCH: Final = 150
COLOR_MAP: Final = "cividis"
BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#E69F00", "#009E73"
RED, SKY, PURPLE, GREY = "#D55E00", "#56B4E9", "#CC79A7", "#8C8C8C"
COLORS: Final = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, GREY)
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
STYLES: Final = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

_STYLE: Final[dict[str, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # Without a salt every SVG has other identifiers.
    "svg.hashsalt": "vllm-sparse",
}


@contextmanager
def style() -> Iterator[None]:
    """Use the look of this file, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # Typed with the names of all settings, which differ between versions.
        cast(Any, matplotlib.rcParams).update(_STYLE)
        yield


def new_figure(height: float, *, width: float = WIDTH) -> Figure:
    """Return an empty figure that draws without a screen; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``figures/<name>.png`` and ``.svg``, each whole or not at all."""
    target = folder / FIGURES
    target.mkdir(exist_ok=True)
    # No dates and versions: the same results give the same bytes.
    kinds: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
    }
    written = []
    for kind, metadata in kinds.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DOTS_PER_INCH, metadata=metadata)
        written.append(write_bytes(target / f"{name}.{kind}", buffer.getvalue()))
    return written


def percent_ticks() -> FuncFormatter:
    """Return a formatter of shares, without zeros behind the point."""
    return FuncFormatter(lambda share, _: f"{100 * share:.3g}%")


def block_axis(axes: Axes, blocks: int) -> None:
    """Label the horizontal axis: whole numbers, all blocks in sight."""
    axes.set_xlabel("Decoder block")
    axes.set_xlim(-0.7, blocks - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=17, integer=True, min_n_ticks=1))
