"""Small decoder blocks with calibration inputs, for the allocators' tests."""

from __future__ import annotations

import torch

from offline_prune.allocators.base import BlockView
from offline_prune.statistics.inputs import InputStatistics
from offline_prune.statistics.needs import Need

SHAPES = {"q": (12, 8), "k": (4, 8), "up": (20, 8), "down": (8, 20)}


def statistics_of(*sequences: torch.Tensor) -> InputStatistics:
    """Return statistics of sequences, each ``[T, K]``."""
    result = InputStatistics(
        sequences[0].shape[1], needs=[Need.MOMENTS, Need.SAMPLE], sample_rows=4096
    )
    for x in sequences:
        result.update(x)
    return result


def random_inputs(seed: int) -> dict[str, list[torch.Tensor]]:
    """Return two sequences of inputs for every linear, with a few loud channels."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name, (_, k) in SHAPES.items():
        loud = torch.randn(k, generator=generator).mul(1.5).exp()
        inputs[name] = [torch.randn(t, k, generator=generator) * loud for t in (5, 9)]
    return inputs


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    """Return a weight for every linear, float32 ``[O, K]``."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.3
        for name, shape in SHAPES.items()
    }


def block_of(
    weights: dict[str, torch.Tensor], inputs: dict[str, list[torch.Tensor]]
) -> BlockView:
    """Return the view an allocator gets."""
    statistics = {name: statistics_of(*inputs[name]) for name in weights}
    return BlockView(index=0, weights=weights, statistics=statistics)


def random_block(seed: int) -> BlockView:
    """Return a block of :data:`SHAPES`."""
    return block_of(random_weights(seed), random_inputs(seed))
