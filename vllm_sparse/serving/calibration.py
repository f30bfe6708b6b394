"""Where a calibrated sidecar comes from, as labels of a metric."""

from __future__ import annotations

from collections.abc import Sequence

from nmsparse.config import SparsityConfig
from nmsparse.pattern import parse_pattern
from vllm_sparse.describe import WeightsRead, share_read
from vllm_sparse.state import LayerReport
from vllm_sparse.stats import RankStats

# Digits of a hash that tell texts apart.
_DIGITS = 12


def calibration_labels(stats: RankStats) -> tuple[str, str, str, str] | None:
    """Return method, data, day and budget; None if nothing was calibrated.

    What the sidecar does not record is an empty text, but for the budget: the patterns
    tell what a sparsified token reads.
    """
    recorded = stats["config"].get("provenance", {})
    if "calibration" not in recorded:
        return None
    config = SparsityConfig.model_validate(stats["config"])
    used = [group.activation for group in config.groups.values() if group.activation]
    words = sorted({"+".join((x.criterion, *x.mitigation)) for x in used})
    allocator = recorded.get("online_allocator", "")
    method = ", ".join(filter(None, (*words, allocator)))
    budget = recorded.get("online_budget")
    if budget is None:
        share = share_of(stats["layers"])
        budget = "" if share is None else f"{share:.2f}"
    return (
        method,
        recorded.get("text_sha256", "")[:_DIGITS],
        recorded.get("created", ""),
        budget,
    )


def share_of(layers: Sequence[LayerReport]) -> float | None:
    """Return the share of their weights that a token reads of sparsified layers."""
    return share_read(
        [
            WeightsRead(
                layer["in_features"] * layer["out_features"],
                parse_pattern(layer["pattern"]).density,
                layer["extra_weights"],
            )
            for layer in layers
            if layer["pattern"] is not None
        ]
    )
