"""The layers of a model that become sparse, by block, and what they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nmsparse.config import ConfigError, SparsityConfig
from nmsparse.resolve import Resolver
from nmsparse.targets import DEFAULT_TARGETS
from offline_prune.errors import InputError
from offline_prune.online.allocate import LayerBytes
from offline_prune.online.fused import FusedLinear, fused_linears
from offline_prune.online.levels import Levels
from offline_prune.pipeline.skeleton import Skeleton

# Bytes of a number in the tensors that the engine keeps beside a weight.
_FLOAT32, _INT32 = 4, 4


def find_sites(
    skeleton: Skeleton, *, targets: Sequence[str], ignore: Sequence[str]
) -> list[list[FusedLinear]]:
    """Return the fused layers of every block that are targeted.

    Targets may name layers as the weight files or as the transformers model do.

    Args:
        skeleton: the model; its blocks need not be loaded.
        targets: as in a configuration; empty for the default targets.
        ignore: as in a configuration.

    Raises:
        InputError: if no layer is targeted.
        ConfigError: if a target matches nothing.
    """
    group = {
        "targets": list(targets or DEFAULT_TARGETS),
        "activation": {"pattern": "1:1"},
    }
    rule = SparsityConfig.parse(
        {"groups": {"default": group}, "ignore": list(ignore)}, source="targets"
    )
    resolver = Resolver(rule)
    found, seen = [], 0
    for index, block in enumerate(skeleton.blocks):
        layers = []
        for layer in fused_linears(block):
            named = _named(skeleton.name(index), layer)
            seen += 1
            kinds = {type(module).__name__ for module in named.parts.values()}
            names = [named.name, *(file_name(skeleton, part) for part in named.parts)]
            resolution = resolver.resolve(
                names if len(names) > 2 else names[1:],
                ("Linear", "LinearBase", *sorted(kinds)),
            )
            if resolution.group is not None:
                layers.append(named)
        found.append(layers)
    resolver.check_targets()
    if not any(found):
        raise InputError(
            f"None of the {seen} linear layers of this model is targeted. Expected at "
            "least one: name layers with targets, or ignore fewer."
        )
    return found


def check_levels(blocks: Sequence[Sequence[FusedLinear]], levels: Levels) -> None:
    """Refuse layers whose width M does not divide, before any long work.

    Raises:
        ConfigError: naming the layer.
    """
    for block in blocks:
        for layer in block:
            try:
                levels.kept(1, layer.in_features)
            except ValueError as error:
                raise ConfigError(f"{layer.name}: {error}") from None


def layer_bytes(
    layer: FusedLinear,
    *,
    item: int,
    mitigation: Sequence[str],
    factor: bool,
    balanced: bool,
    rank: int,
) -> LayerBytes:
    """Return what a layer reads for one token, learned tensors included.

    Args:
        layer: the layer.
        item: bytes of a weight.
        mitigation: names of the mitigations.
        factor: whether the criterion has a static factor.
        balanced: whether the groups are balanced.
        rank: of R-Sparse's matrices.
    """
    channels, outputs = layer.in_features, sum(layer.out_features)
    rank = min(rank, channels, outputs)
    extra: Mapping[str, int] = {
        "d_pts": _FLOAT32 * outputs,
        "d_pts_median": _FLOAT32 * outputs,
        "s_pts": _FLOAT32 * (channels + outputs),
        "l_pts": _FLOAT32 * (channels + outputs),
        "ls": _FLOAT32 * outputs,
        "output_shift": _FLOAT32 * outputs,
        "r_sparse": item * rank * (channels + outputs),
    }
    total = sum(extra.get(name, 0) for name in mitigation)
    total += _FLOAT32 * channels * factor + _INT32 * channels * balanced
    return LayerBytes(channels, outputs, item, total)


def _named(prefix: str, layer: FusedLinear) -> FusedLinear:
    """Return a block's layer with its full names in the transformers model."""
    parts = {f"{prefix}.{name}": module for name, module in layer.parts.items()}
    return replace(layer, name=f"{prefix}.{layer.name}", parts=parts)


def file_name(skeleton: Skeleton, module: str) -> str:
    """Return the name of a linear in the weight files, which configurations use.

    Args:
        skeleton: the model.
        module: its name in the transformers model.
    """
    stored = skeleton.reader.find(f"{module}.weight")
    return stored.plain.removesuffix(".weight") if stored else module
