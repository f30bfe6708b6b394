"""From measures to shares: the chosen allocator, and all others for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from offline_prune.allocators import allocators
from offline_prune.allocators.absorption import Absorption, growth_corrected
from offline_prune.allocators.base import Allocator
from offline_prune.config import PruneConfig
from offline_prune.pipeline.layers import Layer
from offline_prune.pipeline.methods import Methods
from offline_prune.pipeline.profile import Profile
from offline_prune.pipeline.targets import block_sizes, projected

Blocks = Sequence[Sequence[Layer]]


@dataclass(frozen=True, slots=True)
class Allocation:
    """Shares removed from each block.

    Attributes:
        shares: of the chosen allocator, with its correction.
        curves: allocator to shares, side by side.
        profiles: name to one number a block.
        notes: sentences for the report.
    """

    shares: list[float]
    curves: dict[str, list[float]] = field(default_factory=dict)
    profiles: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON data."""
        return {
            "shares": self.shares,
            "curves": self.curves,
            "profiles": self.profiles,
            "notes": self.notes,
        }


def measured_allocators(config: PruneConfig, methods: Methods) -> dict[str, Allocator]:
    """Return the allocators that the dense pass measures.

    The chosen one, and with ``profile`` all others with their default options.
    """
    found: dict[str, Allocator] = {}
    if methods.allocator.measures:
        found[config.allocator] = methods.allocator
    if config.profile:
        for name in allocators:
            if name not in found and allocators.get(name).measures:
                found[name] = allocators.get(name)()
    return found


def allocate(
    config: PruneConfig,
    methods: Methods,
    blocks: Blocks,
    profile: Profile,
    chosen: Allocator,
) -> Allocation:
    """Return every block's share.

    Args:
        config: the configuration.
        methods: its methods.
        blocks: the layers of every block.
        profile: what was measured.
        chosen: the allocator, with whatever a search found.
    """
    sizes = block_sizes(blocks)
    used = [index for index, size in enumerate(sizes) if size]

    def shares(allocator: Allocator, measures: Sequence[float]) -> list[float]:
        raw = allocator.ratios(
            [measures[index] for index in used],
            sizes=[sizes[index] for index in used],
            sparsity=config.target,
        )
        spread = dict(zip(used, raw, strict=True))
        return projected(
            config, blocks, [spread.get(i, 0.0) for i in range(len(sizes))]
        )

    nothing = [0.0] * len(sizes)
    curves = {"uniform": projected(config, blocks, [config.target] * len(sizes))}
    for name, allocator in measured_allocators(config, methods).items():
        curves[name] = shares(allocator, profile.measures[name])
    measures = profile.measures.get(config.allocator, nothing)
    found = shares(chosen, measures)
    curves[config.allocator] = found
    profiles = {name: list(values) for name, values in profile.measures.items()}
    notes: list[str] = []
    if methods.correction is not None and profile.amplification is not None:
        found = _corrected(
            methods.correction, config, blocks, found, profile.amplification
        )
        curves[f"{config.allocator}+{config.correction}"] = found
    if profile.amplification is not None and profile.norms is not None:
        profiles["amplification"] = profile.amplification
        profiles["amplification, growth corrected"] = growth_corrected(
            profile.amplification, profile.norms
        )
    return Allocation(found, curves, profiles, notes)


def restored(data: Mapping[str, Any]) -> Allocation:
    """Return an allocation from JSON data."""
    return Allocation(**data)


def _corrected(
    correction: Absorption,
    config: PruneConfig,
    blocks: Blocks,
    shares: Sequence[float],
    amplification: Sequence[float],
) -> list[float]:
    sizes = block_sizes(blocks)
    used = [index for index, size in enumerate(sizes) if size]
    moved = correction.correct(
        [shares[index] for index in used],
        [amplification[index] for index in used],
        sizes=[sizes[index] for index in used],
        sparsity=config.target,
        lower=config.lower,
        upper=config.upper,
    )
    found = [0.0] * len(sizes)
    for index, share in zip(used, moved, strict=True):
        found[index] = share
    return found
