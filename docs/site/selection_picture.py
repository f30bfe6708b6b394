"""What 8:16 does to one token: its activation in groups of 16, and the rows read."""

from __future__ import annotations

from pathlib import Path

import style
import torch
from matplotlib.patches import Rectangle

from nmsparse import NMPattern, sparsify

CHANNELS = 48
PATTERN = NMPattern(8, 16)
_LEFT, _CELL = 0.95, 0.165


def draw(folder: Path) -> Path:
    """Draw ``selection.svg``."""
    generator = torch.Generator().manual_seed(7)
    token = torch.randn(1, CHANNELS, generator=generator)
    token *= 0.5 + torch.rand(1, CHANNELS, generator=generator)
    kept = sparsify(token, PATTERN)[0] != 0
    values = token[0].tolist()

    figure, axes = style.canvas(9.4, 5.6)
    _activation(axes, values, kept.tolist())
    _weight(axes, kept.tolist())
    return style.save(figure, "selection", folder)


def _x(channel: int) -> float:
    return _LEFT + channel * _CELL + 0.12 * (channel // PATTERN.m)


def _activation(axes: style.Axes, values: list[float], kept: list[bool]) -> None:
    zero, scale = 4.1, 0.42
    axes.text(0.1, 5.33, "One token's input of a linear layer", weight="bold")
    axes.text(
        0.1,
        5.08,
        "8:16 keeps the 8 largest of every 16 channels, by absolute value",
        color=style.MUTED,
        fontsize=9,
    )
    for channel, (value, stays) in enumerate(zip(values, kept, strict=True)):
        color = style.KEPT if stays else style.DROPPED
        low = min(0.0, value) * scale
        axes.add_patch(
            Rectangle(
                (_x(channel) + 0.02, zero + low),
                _CELL - 0.04,
                abs(value) * scale,
                facecolor=color,
            )
        )
    right = _x(CHANNELS - 1) + _CELL
    axes.plot([_LEFT, right], [zero, zero], color=style.MUTED, linewidth=0.8)
    axes.text(0.1, zero, "value", va="center", fontsize=9)
    for group in range(CHANNELS // PATTERN.m):
        start, end = _x(group * PATTERN.m), _x(group * PATTERN.m + 15) + _CELL
        axes.plot([start, end], [3.0, 3.0], color=style.MUTED, linewidth=1.2)
        axes.text(
            (start + end) / 2,
            2.82,
            f"channels {16 * group} to {16 * group + 15}",
            ha="center",
            va="center",
            fontsize=8.5,
            color=style.MUTED,
        )


def _weight(axes: style.Axes, kept: list[bool]) -> None:
    top, depth = 2.25, 1.35
    axes.text(
        0.1, 2.42, "The weight, one row of numbers for each channel", weight="bold"
    )
    for channel, stays in enumerate(kept):
        axes.add_patch(
            Rectangle(
                (_x(channel) + 0.012, top - depth),
                _CELL - 0.024,
                depth,
                facecolor=style.KEPT if stays else "white",
                edgecolor=style.KEPT if stays else style.DROPPED,
                linewidth=0.8,
                alpha=0.85 if stays else 1,
            )
        )
    axes.text(0.1, top - depth / 2, "outputs", va="center", fontsize=9)
    for offset, color, edge, text in (
        (0.0, style.KEPT, style.KEPT, "kept: multiplied, its weights are read"),
        (3.2, "white", style.DROPPED, "dropped: its weights stay in memory, unread"),
    ):
        axes.add_patch(
            Rectangle((_LEFT + offset, 0.42), 0.2, 0.2, facecolor=color, edgecolor=edge)
        )
        axes.text(_LEFT + offset + 0.32, 0.52, text, va="center", fontsize=9)
    axes.text(
        _LEFT,
        0.14,
        "The next token keeps other channels: nothing is removed from the model.",
        fontsize=9,
        color=style.MUTED,
    )
