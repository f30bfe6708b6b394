"""A finished calibration as a sidecar and as a record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nmsparse.config import SparsityConfig
from nmsparse.resolve import Resolver
from nmsparse.targets import DEFAULT_TARGETS
from offline_prune import __version__
from offline_prune.calibration.data import CalibrationSet
from offline_prune.online.allocate import LayerBytes
from offline_prune.online.blockwise import FitResult
from offline_prune.online.config import CalibrateConfig
from offline_prune.online.plan import Blocks, Plan
from offline_prune.online.results import CalibrationRecord, LayerCalibration
from offline_prune.online.sites import file_name
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.stages import hardware, peak_memory


def sidecar_of(
    config: CalibrateConfig,
    plan: Plan,
    blocks: Blocks,
    *,
    text: CalibrationSet,
    skeleton: Skeleton,
    before: SparsityConfig | None = None,
) -> SparsityConfig:
    """Return the configuration, still without its parameters file.

    Args:
        config: the settings.
        plan: level of every layer.
        blocks: fused layers of every block.
        text: the calibration.
        skeleton: the model, for the names in its files.
        before: the model's own sidecar; what it records of weights is kept.
    """
    activation = {
        "criterion": config.criterion,
        "mitigation": list(config.mitigation),
    }
    weights = _weight_records(before)
    groups: dict[str, Any] = {}
    if config.uniform is not None and not config.targets and before is None:
        groups["default"] = {
            "targets": list(DEFAULT_TARGETS),
            "activation": {"pattern": str(config.uniform), **activation},
        }
    else:
        for layer in (layer for block in blocks for layer in block):
            pattern = pattern_of(config, plan, layer.name)
            for name in (file_name(skeleton, part) for part in layer.parts):
                weight = weights(name)
                rule: dict[str, Any] = {"targets": []}
                if pattern is not None:
                    rule["activation"] = {"pattern": pattern, **activation}
                if weight is not None:
                    rule["weight"] = weight
                if len(rule) > 1:
                    record = json.dumps(weight) if weight else ""
                    key = " ".join(filter(None, (pattern or "dense", record)))
                    groups.setdefault(key, rule)["targets"].append(name)
    data = {
        "phase": config.phase,
        "dense_first_token": config.dense_first_token,
        "groups": groups,
        "ignore": list(config.ignore),
        "provenance": {
            **(before.provenance if before is not None else {}),
            "calibration": "calibrate",
            "vllm_sparse": __version__,
            "online_allocator": "uniform" if config.uniform else config.allocator,
            "text_sha256": text.sha256,
            "online_seed": str(config.seed),
            **({} if config.budget is None else {"online_budget": str(config.budget)}),
        },
    }
    return SparsityConfig.parse(data, source="calibration")


def _weight_records(
    before: SparsityConfig | None,
) -> Callable[[str], dict[str, Any] | None]:
    """Return what gives the record of a linear's weight, None if there is none."""
    if before is None:
        return lambda name: None
    resolver = Resolver(before)

    def record(name: str) -> dict[str, Any] | None:
        group = resolver.resolve([name]).group
        found = group.weight if group is not None else None
        return None if found is None else found.model_dump(mode="json")

    return record


def pattern_of(config: CalibrateConfig, plan: Plan, layer: str) -> str | None:
    """Return the pattern of a layer, None if it stays dense."""
    if config.uniform is not None:
        return str(config.uniform)
    level = plan.levels[layer]
    if level == config.levels.count:
        return None
    return str(config.levels.pattern(level))


def make_record(
    config: CalibrateConfig,
    plan: Plan,
    blocks: Blocks,
    *,
    sizes: Mapping[str, LayerBytes],
    text: CalibrationSet,
    fitted: FitResult,
    seconds: Mapping[str, float],
    command: str | None,
    device: torch.device,
) -> CalibrationRecord:
    """Return everything that is known about a calibration."""
    layers = []
    for index, block in enumerate(blocks):
        for layer in block:
            size = sizes[layer.name]
            layers.append(
                LayerCalibration(
                    name=layer.name,
                    block=index,
                    in_features=size.in_features,
                    out_features=size.out_features,
                    pattern=pattern_of(config, plan, layer.name),
                    dense_bytes=size.dense,
                    read_bytes=_read(config, plan, layer.name, size),
                    costs=plan.costs.get(layer.name, []),
                )
            )
    dense = sum(layer.dense_bytes for layer in layers)
    read = sum(layer.read_bytes for layer in layers)
    return CalibrationRecord(
        command=command,
        config=config.as_dict(),
        source=text.source,
        sha256=text.sha256,
        windows=len(text.windows),
        tokens=text.tokens,
        layers=layers,
        dense_bytes=dense,
        read_bytes=read,
        read_share=min(1.0, read / dense),
        block_errors=[(x.error_before, x.error_after) for x in fitted.blocks],
        seconds=dict(seconds),
        peak_memory_bytes=peak_memory(),
        hardware=hardware(device),
    )


def _read(config: CalibrateConfig, plan: Plan, name: str, size: LayerBytes) -> int:
    if config.uniform is None:
        return size.at(plan.levels[name], config.levels)
    kept, group = config.uniform.group(size.in_features)
    channels = size.in_features // group * kept
    return channels * size.out_features * size.item + size.extra
