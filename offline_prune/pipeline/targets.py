"""The budget of every layer: exact to one weight over the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nmsparse.pattern import NMPattern
from nmsparse.targets import best_match
from offline_prune.budget import apportion, apportion_nm, project
from offline_prune.config import PruneConfig
from offline_prune.errors import InputError
from offline_prune.pipeline.layers import Layer
from offline_prune.selection import LayerTarget

Blocks = Sequence[Sequence[Layer]]


def check_layers(config: PruneConfig, blocks: Blocks) -> None:
    """Refuse a model that the configuration does not fit, before any long work.

    Raises:
        InputError: if there is nothing to prune, or a layer's width does not fit the
            pattern.
    """
    layers = [layer for block in blocks for layer in block]
    for target in config.targets:
        # A name that is ignored may well be absent (lm_head); one that is asked for
        # and absent is a mistake.
        if not any(
            best_match([target], one.name, ("Linear", type(one.module).__name__))[0]
            for one in layers
        ):
            raise InputError(
                f"Target {target!r} matches no layer. Expected names such as "
                f"{layers[0].name if layers else 'model.layers.0.mlp.up_proj'}, a "
                "class, or re:<regex>: check its spelling, and what is ignored."
            )
    if not layers:
        raise InputError(
            "No layer of the decoder blocks is left to prune. Expected some: check "
            f"targets {list(config.targets)} and ignore {list(config.ignore)}."
        )
    for layer in layers if config.nm is not None else ():
        assert config.nm is not None
        if layer.in_features % config.nm.m:
            raise InputError(
                f"{layer.name}: in_features {layer.in_features} is not a multiple of "
                f"m={config.nm.m} (pattern {config.nm}). Leave it dense with ignore, "
                "choose another M, or sparsity instead of a pattern."
            )


def block_sizes(blocks: Blocks) -> list[int]:
    """Return the number of prunable weights of every block."""
    return [sum(layer.size for layer in block) for block in blocks]


def projected(config: PruneConfig, blocks: Blocks, raw: Sequence[float]) -> list[float]:
    """Return the share removed from each block, with the exact mean."""
    sizes = block_sizes(blocks)
    used = [index for index, size in enumerate(sizes) if size]
    found = project(
        [raw[index] for index in used],
        [sizes[index] for index in used],
        sparsity=config.target,
        lower=config.lower,
        upper=config.upper,
    )
    shares = [0.0] * len(sizes)
    for index, share in zip(used, found, strict=True):
        shares[index] = share
    return shares


def layer_targets(
    config: PruneConfig, blocks: Blocks, shares: Sequence[float]
) -> dict[str, LayerTarget]:
    """Return what every layer loses.

    Args:
        config: the configuration.
        blocks: the layers of every block.
        shares: share removed from each block, as :func:`projected` gives it.
    """
    if config.nm is not None:
        patterns = [config.nm] * len(blocks)
        if config.mixed:
            patterns = _mixed(config.nm, config.target, blocks, shares)
        return {
            layer.name: LayerTarget.nm(pattern)
            for pattern, block in zip(patterns, blocks, strict=True)
            for layer in block
        }
    layers = [(layer, shares[i]) for i, block in enumerate(blocks) for layer in block]
    total = round(config.target * sum(layer.size for layer, _ in layers))
    counts = apportion(
        [share for _, share in layers],
        [layer.size for layer, _ in layers],
        total=total,
    )
    return {
        layer.name: LayerTarget.count(count)
        for (layer, _), count in zip(layers, counts, strict=True)
    }


def removed_by(target: LayerTarget, layer: Layer) -> int:
    """Return the number of weights that a target removes from a layer."""
    if target.pattern is not None:
        n, m = target.pattern.n, target.pattern.m
        return layer.size * (m - n) // m
    assert target.removed is not None
    return target.removed


def planned(targets: Mapping[str, LayerTarget], blocks: Blocks) -> list[float]:
    """Return the share that the targets remove from each block."""
    shares = []
    for block in blocks:
        size = sum(layer.size for layer in block)
        removed = sum(removed_by(targets[layer.name], layer) for layer in block)
        shares.append(removed / size if size else 0.0)
    return shares


def _mixed(
    pattern: NMPattern, sparsity: float, blocks: Blocks, shares: Sequence[float]
) -> list[NMPattern]:
    sizes = block_sizes(blocks)
    used = [index for index, size in enumerate(sizes) if size]
    kept = apportion_nm(
        [shares[index] for index in used],
        [sizes[index] for index in used],
        m=pattern.m,
        sparsity=sparsity,
    )
    patterns = [pattern] * len(blocks)
    for index, n in zip(used, kept, strict=True):
        patterns[index] = NMPattern(n, pattern.m)
    return patterns
