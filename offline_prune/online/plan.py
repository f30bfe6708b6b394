"""The plan of a calibration: static tensors and a level of density for every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from nmsparse.criteria import criteria
from nmsparse.criteria.second_order import factor_from
from nmsparse.ops.online import Online
from nmsparse.parameters import Parameters
from offline_prune.online.allocate import LayerBytes, allocate
from offline_prune.online.amplify import amplified
from offline_prune.online.balance import balanced_groups
from offline_prune.online.config import PROFILES, CalibrateConfig
from offline_prune.online.fused import FusedLinear
from offline_prune.online.profiles import block_shares, levels_of_profile
from offline_prune.online.reverse import walk_back
from offline_prune.online.sensitivity import (
    Costs,
    OutputEnergies,
    block_costs,
    final_costs,
    input_energies,
)
from offline_prune.pipeline.capture import Capture
from offline_prune.pipeline.skeleton import Skeleton
from offline_prune.pipeline.source import Source

Blocks = Sequence[Sequence[FusedLinear]]
# Layer name to tensors that do not depend on its density.
Static = dict[str, dict[str, torch.Tensor]]


@dataclass(slots=True)
class Plan:
    """What was decided before anything is fitted.

    Attributes:
        static: layer to ``factor`` and ``channel_groups``, as far as they are used.
        levels: layer to its level.
        costs: layer to its costs as measured, empty if they were not.
    """

    static: Static
    levels: dict[str, int]
    costs: Costs = field(default_factory=dict)


def make_plan(
    config: CalibrateConfig,
    source: Source,
    skeleton: Skeleton,
    capture: Capture,
    windows: Sequence[torch.Tensor],
    *,
    blocks: Blocks,
    sizes: Mapping[str, LayerBytes],
    tick: Callable[[], object] = lambda: None,
) -> Plan:
    """Measure what the settings need, and choose every layer's density.

    Args:
        config: the settings.
        source: the model's folder.
        skeleton: the model.
        capture: runs it around its blocks.
        windows: calibration windows.
        blocks: fused layers of every block.
        sizes: layer to its bytes.
        tick: called after every window that passed a block.

    Raises:
        InputError: if the budget or an allocator does not fit the model.
    """
    few = windows[: config.gradient_windows]
    static = _static(config, skeleton, capture, few, blocks=blocks, tick=tick)
    levels = config.levels
    costs: Costs = {}

    def at(layer: FusedLinear, level: int) -> Online:
        parameters = Parameters(**static.get(layer.name, {}))
        pattern = levels.pattern(level)
        return Online(pattern, config.criterion, (), parameters)

    if config.uniform is not None:
        return Plan(static, dict.fromkeys(sizes, 0))
    assert config.budget is not None
    if config.measures_costs:
        amplification = 0.0
        if config.allocator == "final":
            amplification = config.amplification
            costs = final_costs(
                skeleton,
                capture,
                few,
                layers=blocks,
                levels=levels,
                at=at,
                seed=config.seed,
                tick=tick,
            )
        else:
            costs = block_costs(
                skeleton,
                capture,
                few,
                layers=blocks,
                levels=levels,
                at=at,
                tick=tick,
            )
        chosen = allocate(
            amplified(costs, blocks, amplification),
            sizes,
            levels=levels,
            budget=config.budget,
            lower=config.lower,
        )
        return Plan(static, chosen, costs)
    shares = [1.0 - config.budget] * len(blocks)
    if config.allocator in PROFILES:
        shares = block_shares(
            source,
            skeleton,
            windows,
            allocator=config.allocator,
            correction=config.correction,
            budget=config.budget,
        )
    chosen = levels_of_profile(
        shares,
        [[layer.name for layer in block] for block in blocks],
        sizes,
        levels=levels,
        budget=config.budget,
        lower=config.lower,
    )
    return Plan(static, chosen)


def _static(
    config: CalibrateConfig,
    skeleton: Skeleton,
    capture: Capture,
    windows: Sequence[torch.Tensor],
    *,
    blocks: Blocks,
    tick: Callable[[], object],
) -> Static:
    """Return the factors and groups that the settings use."""
    needs = criteria.get(config.criterion).needs
    static: Static = {layer.name: {} for block in blocks for layer in block}
    energies: Mapping[str, torch.Tensor] = {}
    outputs: Mapping[str, torch.Tensor] = {}
    if config.balanced:
        energies = input_energies(skeleton, capture, windows, layers=blocks, tick=tick)
    if needs == "calibration":
        found = OutputEnergies()
        walk_back(
            skeleton,
            capture,
            windows,
            layers=blocks,
            visit=found.visit,
            seed=config.seed,
            tick=tick,
        )
        outputs = found.result()
    if needs not in ("weight", "calibration") and not config.balanced:
        return static
    for index, block in enumerate(blocks):
        skeleton.load(index)
        for layer in block:
            factor = None
            if needs == "calibration":
                factor = factor_from(layer.weight(), outputs[layer.name])
            elif needs == "weight":
                factor = criteria.get(config.criterion).factor(layer.weight())
            if factor is not None:
                static[layer.name]["factor"] = factor
            if config.balanced:
                energy = energies[layer.name]
                if factor is not None:
                    energy = energy * factor.double().cpu().square()
                m = config.levels.m
                assert m is not None
                static[layer.name]["channel_groups"] = balanced_groups(energy, m)
        skeleton.unload(index)
    return static


def rules_of(config: CalibrateConfig, plan: Plan, blocks: Blocks) -> dict[str, Online]:
    """Return what is done to every layer that is sparse, without learned tensors."""
    rules = {}
    for block in blocks:
        for layer in block:
            level = plan.levels[layer.name]
            if config.uniform is None and level == config.levels.count:
                continue
            pattern = config.uniform or config.levels.pattern(level)
            online = Online(pattern, config.criterion, config.mitigation)
            static = Parameters(**plan.static.get(layer.name, {}))
            rules[layer.name] = replace(online, parameters=static)
    return rules
