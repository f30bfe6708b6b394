"""Drawings of boxes: the phases of a request, and the plugin within vLLM."""

from __future__ import annotations

from pathlib import Path

import style
from style import arrow, box


def draw_phases(folder: Path) -> Path:
    """Draw ``phases.svg``."""
    figure, axes = style.canvas(9.4, 3.1)
    axes.text(0.2, 2.82, "One request with phase decode, the default", weight="bold")
    box(axes, (0.2, 1.0), (3.5, 1.5), face="#f3f4f6", title="prefill, step 1")
    words = ["<bos>", "The", "capital", "of", "France", "is"]
    for index, word in enumerate(words):
        at = (0.32 + 0.555 * index, 1.3)
        box(axes, at, (0.5, 0.55), word, face="white", font=7.5)
    axes.text(0.32, 1.12, "all tokens of the prompt together", fontsize=8.5)
    answers = ["Paris", ",", "a", "city"]
    for index, word in enumerate(answers):
        left = 4.15 + 1.28 * index
        box(axes, (left, 1.0), (1.08, 1.5), face=style.KEPT_LIGHT, edge=style.KEPT)
        axes.text(left + 0.12, 2.39, "decode", va="top", fontsize=9, weight="bold")
        box(axes, (left + 0.27, 1.3), (0.55, 0.55), word, font=8)
        axes.text(left + 0.12, 1.12, f"step {index + 2}", fontsize=8.5)
        arrow(axes, (left - (0.45 if not index else 0.2), 1.58), (left, 1.58))
    axes.text(
        0.2,
        0.62,
        "Dense: a weight is read once\nfor all tokens of the prompt.",
        va="top",
        fontsize=9,
        linespacing=1.4,
    )
    axes.text(
        4.15,
        0.62,
        "Sparse: each step reads the weights for one token of each request,\n"
        "and only those of the channels that the token kept.",
        va="top",
        fontsize=9,
        linespacing=1.4,
    )
    return style.save(figure, "phases", folder)


def draw_plugin(folder: Path) -> Path:
    """Draw ``plugin.svg``."""
    figure, axes = style.canvas(9.4, 5.9)
    box(axes, (0.2, 0.25), (2.5, 5.3), face="#f9fafb", title="API server")
    box(
        axes, (0.4, 4.1), (2.1, 0.8), "vllm-sparse serve\nchecks our flags, then vLLM's"
    )
    box(axes, (0.4, 2.75), (2.1, 0.8), "/v1/...\nOpenAI API, unchanged")
    box(
        axes,
        (0.4, 0.55),
        (2.1, 1.45),
        "GET /sparsity\n/metrics: vllm_sparse_*\n\npolls the workers",
        face=style.GREEN_LIGHT,
        edge=style.GREEN,
    )
    box(
        axes,
        (3.05, 0.25),
        (6.15, 5.3),
        face="#f9fafb",
        title="worker, one for each rank",
    )
    axes.text(3.17, 5.16, "vLLM's model and runner", fontsize=8.5, color=style.MUTED)
    box(
        axes,
        (3.3, 4.1),
        (2.3, 0.8),
        "step inputs\n+ phase of every token",
        face=style.KEPT_LIGHT,
        edge=style.KEPT,
    )
    box(axes, (3.3, 2.95), (2.3, 0.65), "attention, norms, ...\nvLLM's")
    box(axes, (3.3, 0.55), (2.3, 1.9), face="white", title="linear layer")
    axes.text(
        3.42,
        2.08,
        "vLLM's class, loaders\nand sharding; a method\nof ours inside",
        fontsize=8.5,
        va="top",
        linespacing=1.35,
    )
    box(
        axes,
        (3.45, 0.7),
        (2.0, 0.5),
        "counters",
        face=style.GREEN_LIGHT,
        edge=style.GREEN,
    )
    box(
        axes,
        (6.05, 0.55),
        (2.95, 4.35),
        face=style.KEPT_LIGHT,
        edge=style.KEPT,
        title="one step of that layer",
    )
    box(axes, (6.25, 3.6), (2.55, 0.75), "select N of every M\nchannels of each token")
    box(axes, (6.25, 2.55), (2.55, 0.65), "which way is fastest\nfor so many tokens?")
    box(
        axes,
        (6.25, 1.55),
        (2.55, 0.6),
        "few: kept rows of the weight\n(ours)",
        font=8.5,
    )
    box(
        axes,
        (6.25, 0.75),
        (2.55, 0.6),
        "many: whole weight\n(vLLM's product)",
        font=8.5,
    )
    arrow(axes, (7.52, 3.6), (7.52, 3.2), color=style.KEPT)
    arrow(axes, (7.52, 2.55), (7.52, 2.15), color=style.KEPT)
    axes.plot([6.12, 6.12], [2.87, 1.05], color=style.KEPT, linewidth=1.2)
    axes.plot([6.12, 6.25], [2.87, 2.87], color=style.KEPT, linewidth=1.2)
    arrow(axes, (6.12, 1.05), (6.25, 1.05), color=style.KEPT)
    arrow(axes, (5.6, 1.75), (6.05, 1.75), color=style.KEPT)
    arrow(axes, (4.45, 4.1), (4.45, 3.6))
    arrow(axes, (4.45, 2.95), (4.45, 2.45))
    arrow(axes, (1.45, 4.1), (1.45, 3.55))
    arrow(axes, (2.5, 3.15), (3.3, 4.35))
    arrow(axes, (2.5, 0.95), (3.45, 0.95), color=style.GREEN)
    return style.save(figure, "plugin", folder)
