"""Measures of the dense model that allocators work from, in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from offline_prune.allocators.base import Allocator, BlockView
from offline_prune.pipeline.amplification import Amplification
from offline_prune.pipeline.capture import Capture
from offline_prune.pipeline.collect import collect
from offline_prune.pipeline.layers import Layer
from offline_prune.pipeline.methods import ERROR_ROWS
from offline_prune.pipeline.ranks import Ranks
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.stream import Stream, Tick
from offline_prune.statistics.needs import Need


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured, one number a block.

    Attributes:
        measures: allocator to its measures.
        amplification: how much of a perturbation after each block is left at the end,
            relative to its size; None if it was not measured.
        norms: mean norm of the hidden states after each block, for the norm-corrected
            amplification; None if it was not measured.
        drifts: size of the perturbation that was injected; None if none was.
    """

    measures: dict[str, list[float]] = field(default_factory=dict)
    amplification: list[float] | None = None
    norms: list[float] | None = None
    drifts: list[float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)


def measure_dense(
    skeleton: Skeleton,
    capture: Capture,
    windows: Sequence[torch.Tensor],
    *,
    blocks: Sequence[Sequence[Layer]],
    allocators: Mapping[str, Allocator],
    amplification: Amplification | None,
    ranks: Ranks,
    tick: Tick,
) -> Profile:
    """Run the dense model once and measure every block.

    Args:
        skeleton: the model.
        capture: runs it around its blocks.
        windows: this process's calibration windows.
        blocks: the layers of every block.
        allocators: those that measure, by name.
        amplification: measures how perturbations travel; None to leave it out.
        ranks: the processes that share the calibration.
        tick: called after every window that passed a block.
    """
    needs: set[Need] = set()
    for allocator in allocators.values():
        needs |= allocator.needs
    if amplification is not None:
        needs |= amplification.needs
    data = bool(needs) or amplification is not None
    stream = Stream(capture, windows if data else [], tick=tick)
    measures: dict[str, list[float]] = {name: [] for name in allocators}
    for index, layers in enumerate(blocks):
        block = skeleton.load(index)
        statistics = collect(
            stream,
            index,
            block,
            layers=layers,
            needs=needs,
            sample_rows=ERROR_ROWS,
            ranks=ranks,
        )
        view = BlockView(
            index=index,
            weights={layer.name: layer.view() for layer in layers},
            statistics=statistics,
        )
        for name, allocator in allocators.items():
            found = allocator.measure(view) if layers else None
            measures[name].append(math.nan if found is None else found)
        if index + 1 < len(blocks) or amplification is not None:
            stream.advance(index, block)
        if amplification is not None:
            amplification.after(index, block, stream, layers, statistics)
        skeleton.unload(index)
    if amplification is None:
        return Profile(measures)
    return Profile(measures, *amplification.result())
