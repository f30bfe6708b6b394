"""The sidecar's record of weight sparsity against ``results.json``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from nmsparse.config import ConfigError, SparsityConfig, WeightSparsity
from nmsparse.pattern import NMPattern
from nmsparse.sidecar import SIDECAR_NAME, read_sidecar
from nmsparse.targets import Specificity, match
from offline_prune.report.layers import LayerResult
from offline_prune.report.results import Results

# A sidecar is read by people too: its shares may be rounded.
_TOLERANCE = 5e-4


def sidecar_findings(folder: Path, results: Results) -> tuple[list[str], list[str]]:
    """Compare patterns and shares; what the sidecar does not mention is only noted.

    Returns:
        Problems and notes, one sentence each.
    """
    try:
        config = read_sidecar(folder)
    except ConfigError as error:
        return str(error).splitlines(), []
    if config is None:
        return [], [f"There is no {SIDECAR_NAME}: nothing to compare with it."]
    members: dict[str, list[LayerResult]] = defaultdict(list)
    silent = 0
    group_of = _group_of(config)
    for layer in results.layers:
        group = group_of(layer.name)
        if group is None:
            silent += 1
        else:
            members[group].append(layer)
    problems = []
    for name, layers in members.items():
        weight = config.groups[name].weight
        if weight is not None:
            problems += _differences(name, weight, layers)
    notes = []
    if silent:
        notes.append(
            f"{SIDECAR_NAME} records no weight sparsity of {silent} of "
            f"{len(results.layers)} pruned layers: nothing to compare."
        )
    return problems, notes


def _group_of(config: SparsityConfig) -> Callable[[str], str | None]:
    """Return a function from a layer to the group that records its weight sparsity.

    Full names are looked up: a model of many experts has as many groups.
    """
    exact: dict[str, str] = {}
    broad: list[tuple[str, str]] = []
    for key, group in config.groups.items():
        if group.weight is not None:
            for target in group.targets:
                exact.setdefault(target, key)
                if target.startswith("re:") or "." not in target:
                    broad.append((target, key))

    def find(name: str) -> str | None:
        if name in exact:
            return exact[name]
        best, winner = Specificity.NONE, None
        for target, key in broad:
            found = match(target, name, ("Linear",))
            if found > best:
                best, winner = found, key
        return winner

    return find


def _differences(
    name: str, weight: WeightSparsity, layers: list[LayerResult]
) -> list[str]:
    """Return a sentence for each pattern, and for a share, that is another one."""
    recorded = weight.pattern if isinstance(weight.pattern, NMPattern) else None
    problems = [
        f"{layer.name}: {SIDECAR_NAME} says {weight.pattern}. Expected "
        f"{layer.pattern or 'no N:M pattern'}, by the results."
        for layer in layers
        if layer.nm != recorded
    ]
    achieved = sum(x.removed for x in layers) / sum(x.size for x in layers)
    if weight.sparsity is not None and abs(weight.sparsity - achieved) > _TOLERANCE:
        problems.append(
            f"{layers[0].name}: {SIDECAR_NAME} says {weight.sparsity:.4%} sparsity for "
            f"its group {name!r}. Expected {achieved:.4%}, by the results."
        )
    return problems
