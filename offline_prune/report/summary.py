"""What a run comes to, in words: pattern, method, shares by kind of layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nmsparse.pattern import NMPattern
from offline_prune.report.layers import LayerResult
from offline_prune.report.results import Results


@dataclass(frozen=True, slots=True)
class KindSummary:
    """All layers of one kind, such as ``q_proj``.

    Attributes:
        kind: of the layers.
        layers: how many.
        sparsity: of all their weights together.
        lowest: sparsity of the least pruned one.
        highest: sparsity of the most pruned one.
        relative_error: mean over the layers where it was measured, None if nowhere.
    """

    kind: str
    layers: int
    sparsity: float
    lowest: float
    highest: float
    relative_error: float | None


def by_kind(layers: Iterable[LayerResult]) -> list[KindSummary]:
    """Return one summary a kind, in the order of the model."""
    members: dict[str, list[LayerResult]] = {}
    for layer in layers:
        members.setdefault(layer.kind, []).append(layer)
    return [_summary(kind, found) for kind, found in members.items()]


def share_removed(layers: Iterable[LayerResult]) -> float:
    """Return the share of all weights of the layers that was removed."""
    found = list(layers)
    return sum(layer.removed for layer in found) / sum(layer.size for layer in found)


def mean_error(layers: Iterable[LayerResult]) -> float | None:
    """Return the mean relative error of the layers where it was measured."""
    errors = [x.relative_error for x in layers if x.relative_error is not None]
    return sum(errors) / len(errors) if errors else None


def pattern_text(layers: Iterable[LayerResult]) -> str:
    """Return ``8:16``, ``6:16 to 10:16``, ``unstructured``, or several of them."""
    patterns: dict[int, set[int]] = {}
    unstructured = False
    for layer in layers:
        if layer.nm is None:
            unstructured = True
        else:
            patterns.setdefault(layer.nm.m, set()).add(layer.nm.n)
    texts = []
    for m, kept in sorted(patterns.items()):
        low, high = NMPattern(min(kept), m), NMPattern(max(kept), m)
        texts.append(str(low) if low == high else f"{low} to {high}")
    return " and ".join([*texts, *(["unstructured"] if unstructured else [])])


def pattern_slug(results: Results) -> str:
    """Return the pattern for names of files and tags: ``8of16``, ``sparse50``."""
    patterns = {layer.nm for layer in results.layers}
    if len(patterns) == 1 and (only := next(iter(patterns))) is not None:
        return only.slug
    groups = {pattern.m for pattern in patterns if pattern is not None}
    if None not in patterns and len(groups) == 1:
        return f"mixed-of{groups.pop()}"
    return f"sparse{results.budget.achieved * 100:.4g}"


def method_parts(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what was used, by kind of method; steps that were left out are not there.

    Args:
        config: of a run; its keys are a recipe's.
    """
    found = {}
    for key in ("scorer", "allocator", "correction", "channels"):
        if config.get(key):
            found[key] = str(config[key]) + _options(config.get(_options_key(key)))
    names = config.get("compensation") or []
    if isinstance(names, str):
        names = [names]
    options = config.get("compensation_options") or {}
    if names:
        texts = [str(name) + _options(options.get(name)) for name in names]
        found["compensation"] = ", then ".join(texts)
    if config.get("permutation"):
        found["permutation"] = "input channels reordered"
    return found


def _options_key(key: str) -> str:
    return "channel_options" if key == "channels" else f"{key}_options"


def _options(options: Any) -> str:
    """Return ``(a=1, b=2)``, empty without options."""
    if not isinstance(options, Mapping) or not options:
        return ""
    return f" ({', '.join(f'{key}={value}' for key, value in options.items())})"


def _summary(kind: str, layers: list[LayerResult]) -> KindSummary:
    shares = [layer.sparsity for layer in layers]
    return KindSummary(
        kind=kind,
        layers=len(layers),
        sparsity=share_removed(layers),
        lowest=min(shares),
        highest=max(shares),
        relative_error=mean_error(layers),
    )
