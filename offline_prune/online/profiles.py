"""Densities from the weight side: a pruning allocator's profile over the blocks.

OWL, AlphaPruning, DLP and the absorption-aware correction say how much each block could
lose of its weights. The same shares are taken as how much it drops of its inputs: all
layers of a block get the nearest levels, so that the budget is met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from nmsparse.config import ConfigError
from offline_prune.budget import apportion_nm
from offline_prune.config import PruneConfig
from offline_prune.online.allocate import LayerBytes, budget_bytes
from offline_prune.online.levels import Levels
from offline_prune.pipeline.job import Job
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.source import Source


def block_shares(
    source: Source,
    skeleton: Skeleton,
    windows: Sequence[torch.Tensor],
    *,
    allocator: str,
    correction: str | None,
    budget: float,
) -> list[float]:
    """Return the share of its weights that every block would lose.

    Raises:
        InputError: if the allocator cannot be used on this model.
    """
    fields = {"scorer": "wanda", "sparsity": 1.0 - budget, "allocator": allocator}
    if correction is not None:
        fields["correction"] = correction
    config = PruneConfig.parse(fields, source="profile")
    job = Job.prepare(config, source, skeleton, windows=windows)
    job.plan()
    return job.planned()


def levels_of_profile(
    shares: Sequence[float],
    blocks: Sequence[Sequence[str]],
    layers: Mapping[str, LayerBytes],
    *,
    levels: Levels,
    budget: float,
    lower: int = 1,
) -> dict[str, int]:
    """Return the level of every layer: that of its block's share.

    Args:
        shares: share to drop, of every block.
        blocks: names of the layers of every block.
        layers: layer to its bytes.
        levels: the densities.
        budget: share of all dense bytes that may be read.
        lower: least level.

    Returns:
        Levels whose bytes are at most the budget's.

    Raises:
        ConfigError: if the budget does not hold the least levels.
    """
    room = budget_bytes(layers, budget)
    names = [name for block in blocks for name in block]
    wish = [s for s, block in zip(shares, blocks, strict=True) for _ in block]
    sizes = [layers[name].dense for name in names]
    found = apportion_nm(wish, sizes, m=levels.count, sparsity=1.0 - budget)
    chosen = {n: max(lower, x) for n, x in zip(names, found, strict=True)}

    def used() -> int:
        return sum(layers[n].at(level, levels) for n, level in chosen.items())

    # Learned tensors, and levels below the least, come on top of the shares.
    while used() > room:
        above = [n for n, level in chosen.items() if level > lower]
        if not above:
            raise ConfigError(
                f"Budget {budget}: the least level of every layer reads more. Expected "
                "a greater budget."
            )
        most = max(above, key=lambda n: (chosen[n], layers[n].dense))
        chosen[most] -= 1
    return chosen
