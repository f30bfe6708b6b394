"""Which pictures a run has, and their files."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offline_prune.errors import MissingDependencyError
from offline_prune.report.layers import LayerResult
from offline_prune.report.measurements import ZeroShotResult
from offline_prune.report.pictures import Picture
from offline_prune.report.results import Results
from offline_prune.report.summary import mean_error, share_removed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Shares that differ by less look the same: no picture.
_VISIBLE = 5e-4
# What the measure of an allocator is; others are shown by their name.
_LABELS = {
    "owl": "owl: outliers (% of the scores)",
    "dlp": "dlp: mean score",
    "alpha_pruning": "alpha_pruning: exponent of the spectrum's tail",
    "amplification": "amplification of an error on its way to the output (ratio)",
}


@dataclass(frozen=True, slots=True)
class Plots:
    """What was drawn.

    Attributes:
        pictures: in the order of a report.
        files: all files that were written.
    """

    pictures: tuple[Picture, ...]
    files: tuple[Path, ...]


def check_plots() -> None:
    """Refuse to draw without matplotlib.

    Raises:
        MissingDependencyError: with the command that installs it.
    """
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Report: matplotlib is not installed, so there are no pictures. Expected "
            "the report extra: pip install 'vllm-sparse[report]'"
        ) from error


def write_plots(folder: Path, results: Results) -> Plots:
    """Draw everything that has something to show, into ``figures/``.

    A picture in which all blocks or layers look the same is left out.

    Args:
        folder: of the report.
        results: of the run.

    Raises:
        MissingDependencyError: if matplotlib is missing.
    """
    check_plots()
    from offline_prune.report.canvas import save, style

    pictures, files = [], []
    with style():
        for picture, figure in _drawings(results):
            files += save(figure, folder, picture.name)
            pictures.append(picture)
    return Plots(tuple(pictures), tuple(files))


def _drawings(results: Results) -> list[tuple[Picture, Figure]]:
    """Return the pictures and what is in them."""
    from offline_prune.report.curves import (
        allocation_curves,
        block_bars,
        profile_panels,
        task_dots,
    )
    from offline_prune.report.heat_map import heat_map

    found = []
    target = results.budget.target
    shares = [block.sparsity for block in results.blocks]
    if _differ(shares):
        caption = "Share of its weights that each decoder block lost."
        figure = block_bars(shares, target=target)
        found.append((Picture("blocks", caption), figure))
    if _differ_inside(results.layers):
        figure = heat_map(
            results.layers,
            share_removed,
            title="Weights removed from each layer",
            label="Removed",
            percent=True,
        )
        caption = "Share of its weights that each layer lost: block by kind of layer."
        found.append((Picture("layers", caption), figure))
    if any(layer.relative_error is not None for layer in results.layers):
        figure = heat_map(
            results.layers,
            mean_error,
            title="Change of each layer's output on calibration data",
            label="Relative error",
            percent=True,
        )
        caption = (
            "Change of each layer's output, root of the mean square, as a share of the "
            "dense output."
        )
        found.append((Picture("errors", caption), figure))
    if len(results.allocations) > 1:
        figure = allocation_curves(
            results.allocations, used=_used(results), target=target
        )
        caption = "What each allocator removes from each block at the same budget."
        found.append((Picture("allocations", caption), figure))
    if results.profiles:
        named = {_LABELS.get(k, k): v for k, v in results.profiles.items()}
        figure = profile_panels(named)
        caption = "What the allocators measured on the dense blocks."
        found.append((Picture("profiles", caption), figure))
    scores = {
        score.task: (score.dense, score.pruned)
        for result in results.evaluation
        if isinstance(result, ZeroShotResult)
        for score in result.scores
    }
    if scores:
        caption = "Score of each task: dense model and pruned model."
        found.append((Picture("tasks", caption), task_dots(scores)))
    return found


def _used(results: Results) -> str:
    """Return the name of the curve that was pruned: corrected, if there is one."""
    allocator = str(results.config.get("allocator"))
    corrected = f"{allocator}+{results.config.get('correction')}"
    return corrected if corrected in results.allocations else allocator


def _differ(shares: Sequence[float]) -> bool:
    return max(shares) - min(shares) > _VISIBLE


def _differ_inside(layers: Sequence[LayerResult]) -> bool:
    """Return whether layers of the same block differ: else the blocks say it all."""
    blocks: dict[int, list[float]] = {}
    for layer in layers:
        blocks.setdefault(layer.block, []).append(layer.sparsity)
    return any(_differ(shares) for shares in blocks.values())
