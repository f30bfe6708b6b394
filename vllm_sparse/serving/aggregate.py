"""Combine the statistics of all ranks, and of all engines, into one picture."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vllm_sparse.state import LayerReport
from vllm_sparse.stats import RankStats

if TYPE_CHECKING:
    from vllm_sparse.canary.canary import CanaryStats
    from vllm_sparse.timing import Timings


def merge_ranks(ranks: Sequence[RankStats]) -> RankStats:
    """Return one picture of an engine.

    Column-parallel layers see the same input on every rank, so rank 0 speaks for them;
    row-parallel layers see a shard of K each, so their counts are summed, as are bytes
    of weights and samples of times. Pipeline stages hold different layers, which are
    joined.

    Args:
        ranks: every worker's statistics, at least one.
    """
    first = ranks[0]
    layers: dict[str, LayerReport] = {}
    for stats in ranks:
        for layer in stats["layers"]:
            known = layers.get(layer["name"])
            if known is None:
                layers[layer["name"]] = layer.copy()
                continue
            _add_bytes(known, layer)
            if layer["k_sharded"]:
                known["elements"] += layer["elements"]
                known["nonzeros"] += layer["nonzeros"]
    for layer in layers.values():
        elements = layer["elements"]
        layer["density"] = layer["nonzeros"] / elements if elements else None
    merged = first.copy()
    merged["layers"] = list(layers.values())
    merged["timings"] = _merge_timings([stats["timings"] for stats in ranks])
    merged["canary"] = _merge_canaries([stats["canary"] for stats in ranks])
    return merged


def merge_engines(engines: Sequence[RankStats]) -> RankStats:
    """Return one picture of data-parallel engines: the same layers, other tokens.

    Args:
        engines: each merged over its ranks, at least one.
    """
    if len(engines) == 1:
        return engines[0]
    merged = copy.deepcopy(engines[0])
    layers = {layer["name"]: layer for layer in merged["layers"]}
    for stats in engines[1:]:
        merged["dense_first"] += stats["dense_first"]
        for phase, tokens in stats["tokens"].items():
            merged["tokens"][phase] += tokens
        for layer in stats["layers"]:
            if layer["name"] in layers:
                _add_layer(layers[layer["name"]], layer)
    merged["timings"] = _merge_timings([stats["timings"] for stats in engines])
    merged["canary"] = _merge_canaries([stats["canary"] for stats in engines])
    return merged


def _add_layer(known: LayerReport, layer: LayerReport) -> None:
    """Add what another engine's copy of a layer did."""
    known["elements"] += layer["elements"]
    known["nonzeros"] += layer["nonzeros"]
    elements = known["elements"]
    known["density"] = known["nonzeros"] / elements if elements else None
    known["calls"] = dict(Counter(known["calls"]) + Counter(layer["calls"]))
    fallbacks = Counter(known["fallbacks"]) + Counter(layer["fallbacks"])
    known["fallbacks"] = dict(fallbacks)
    _add_bytes(known, layer)


def _add_bytes(known: LayerReport, layer: LayerReport) -> None:
    known["extra_bytes"] += layer["extra_bytes"]
    known["bytes_skipped"] += layer["bytes_skipped"]
    if known["bytes_read"] is not None and layer["bytes_read"] is not None:
        known["bytes_read"] += layer["bytes_read"]


def _merge_timings(ranks: Sequence[Timings]) -> Timings:
    merged: Timings = {}
    for timings in ranks:
        for op, found in timings.items():
            known = merged.setdefault(op, [[0, 0] for _ in found])
            merged[op] = [
                [a + b for a, b in zip(x, y, strict=True)]
                for x, y in zip(known, found, strict=True)
            ]
    return merged


def _merge_canaries(ranks: Sequence[CanaryStats | None]) -> CanaryStats | None:
    """Return the sums over ranks: each compares its own part of a layer's result."""
    found = [canary for canary in ranks if canary is not None]
    if not found:
        return None
    merged = copy.deepcopy(found[0])
    for canary in found[1:]:
        # Pipeline stages hold different layers, tensor-parallel ranks the same.
        merged["layers"] = list(dict.fromkeys(merged["layers"] + canary["layers"]))
        for kind, totals in canary["kinds"].items():
            known = merged["kinds"].get(kind)
            if known is None:
                merged["kinds"][kind] = totals.copy()
                continue
            known["tokens"] += totals["tokens"]
            known["relative_error"] += totals["relative_error"]
            known["cosine_distance"] += totals["cosine_distance"]
    return merged
