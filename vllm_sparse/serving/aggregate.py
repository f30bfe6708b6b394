"""Combine the statistics of all tensor-parallel ranks into one picture."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_sparse.state import LayerReport
from vllm_sparse.stats import RankStats


def merge_ranks(ranks: Sequence[RankStats]) -> RankStats:
    """Return one picture of an engine.

    Column-parallel layers see the same input on every rank, so rank 0 speaks for them;
    row-parallel layers see a shard of K each, so their counts are summed, as are bytes
    of weights. Pipeline stages hold different layers, which are joined.

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
            known["extra_bytes"] += layer["extra_bytes"]
            if layer["k_sharded"]:
                known["elements"] += layer["elements"]
                known["nonzeros"] += layer["nonzeros"]
    for layer in layers.values():
        elements = layer["elements"]
        layer["density"] = layer["nonzeros"] / elements if elements else None
    merged = first.copy()
    merged["layers"] = list(layers.values())
    return merged
