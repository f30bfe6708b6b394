"""L-PTS: a vector, subtracted from every input before the choice.

arXiv 2509.22166 learns it by gradient steps. Our formulation, to start from: the mean
of every channel, tokens weighted as in ``offline_prune.online.fit``, or by option its
median, which no few tokens can move.
"""

from __future__ import annotations

import torch

from nmsparse.ops.online import Online
from offline_prune.online.fit.evidence import Evidence
from offline_prune.online.fit.options import FitOptions

# Tokens of which a median is taken: evenly spaced ones, if there are more.
_ROWS = 16384


def fit(
    evidence: Evidence, online: Online, *, options: FitOptions
) -> dict[str, torch.Tensor]:
    """Return ``channel_shift``, float32 ``[K]``.

    Args:
        evidence: the layer.
        online: what it has so far; not used.
        options: ``shift`` says which statistic.
    """
    median = options.shift == "median"
    shift = channel_medians(evidence) if median else channel_means(evidence)
    return {"channel_shift": shift.float()}


def channel_means(evidence: Evidence) -> torch.Tensor:
    """Return the weighted mean of every channel, float64 ``[K]``."""
    total = evidence.weight.new_zeros(evidence.in_features).double()
    weight = 0.0
    for window, weights in zip(evidence.windows, evidence.weights, strict=True):
        used = weights > 0
        total += weights[used].double() @ window.x[used].double()
        weight += float(weights.double().sum())
    return total / weight if weight else total


def channel_medians(evidence: Evidence) -> torch.Tensor:
    """Return the lower median of every channel, ``[K]``, over tokens that weigh."""
    pairs = zip(evidence.windows, evidence.weights, strict=True)
    rows = torch.cat([window.x[weights > 0] for window, weights in pairs])
    if not len(rows):
        return rows.new_zeros(evidence.in_features)
    rows = rows[:: -(-len(rows) // _ROWS)]
    return rows.float().median(dim=0).values
