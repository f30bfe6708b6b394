"""Draw docs/images/kernels.svg from the newest rows of ``kernel_speed.py``.

Needs matplotlib: ``pip install 'vllm-sparse[report]'``. A line is the median over
layers, its band reaches from the slowest to the fastest layer. Layers that lack a drawn
mode (``lm_head``) are left out, so that every line is about the same layers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import kernel_tables

IMAGE = Path(__file__).parent.parent / "docs/images/kernels.svg"
DRAWN = ("8:16", "4:16", "8:16 shared", "packed 50%", "packed 70%")

# threads -> mode -> tokens -> speeds of layers
Curves = dict[int, dict[str, dict[int, list[float]]]]


def curves(found: list[dict[str, Any]]) -> Curves:
    """Return speeds against stock, by threads, mode and tokens."""
    modes: dict[tuple[str, str], set[str]] = {}
    for row in found:
        modes.setdefault((row["preset"], row["shape"]), set()).add(row["mode"])
    made: Curves = {}
    for row in found:
        if row["mode"] in DRAWN and modes[row["preset"], row["shape"]] >= set(DRAWN):
            tokens = made.setdefault(row["threads"], {}).setdefault(row["mode"], {})
            tokens.setdefault(row["tokens"], []).append(row["speed_vs_stock_p50"])
    return dict(sorted(made.items()))


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Write the picture of rows that were measured in one place.

    Raises:
        SystemExit: without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(
            "plot.py: matplotlib is not installed. Expected the extra `report`: "
            "pip install 'vllm-sparse[report]'"
        ) from error
    matplotlib.use("svg")
    # Drawn twice from the same rows, the file is the same.
    matplotlib.rcParams.update({"svg.hashsalt": "kernels", "svg.fonttype": "none"})
    from matplotlib import pyplot

    made = curves(found)
    figure, axes = pyplot.subplots(
        1,
        max(1, len(made)),
        figsize=(4.6 * max(1, len(made)) + 0.4, 4.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    if not made:
        axes[0][0].text(0.5, 0.5, "no rows yet: make bench-kernels", ha="center")
    for axis, (threads, modes) in zip(axes[0], made.items(), strict=False):
        counts = sorted({count for tokens in modes.values() for count in tokens})
        axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
        for mode in DRAWN:
            at = sorted(modes.get(mode, {}).items())
            where = [counts.index(count) for count, _ in at]
            (line,) = axis.plot(
                where, [statistics.median(v) for _, v in at], marker="o", label=mode
            )
            low, high = [min(v) for _, v in at], [max(v) for _, v in at]
            color = line.get_color()
            axis.fill_between(where, low, high, color=color, alpha=0.12, linewidth=0)
        axis.set_xticks(range(len(counts)), [str(count) for count in counts])
        axis.set_xlabel("tokens T")
        axis.set_title(f"{threads} thread{'s' if threads > 1 else ''}")
        axis.grid(alpha=0.3)
    if made:
        axes[0][0].set_ylim(bottom=0)
        axes[0][0].set_ylabel("speed against vLLM's CPU linear")
        axes[0][-1].legend(fontsize="small")
        figure.suptitle(f"{found[-1]['hardware']}, {found[-1]['dtype']}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> int:
    """Draw the place that was measured last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=IMAGE)
    output = parser.parse_args().output
    draw(kernel_tables.measured_last(), output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
