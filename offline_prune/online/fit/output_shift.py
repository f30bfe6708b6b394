"""Output shift: what is missing on average, added to each output.

arXiv 2509.22166 (``shift`` of its code) learns it by gradient steps. Our formulation:
the weighted mean of what all other terms leave. The plain mean is a trap: see
``offline_prune.online.fit``.
"""

from __future__ import annotations

import torch

from nmsparse.ops.online import Online
from offline_prune.online.fit.evidence import Evidence
from offline_prune.online.fit.options import FitOptions


def fit(
    evidence: Evidence, online: Online, *, options: FitOptions
) -> dict[str, torch.Tensor]:
    """Return ``output_shift``, float32 ``[O]``.

    Args:
        evidence: the layer.
        online: what it has so far; its output shift is neutral.
        options: not used.
    """
    total = evidence.weight.new_zeros(evidence.out_features).double()
    weight = 0.0
    for seen in evidence.seen(online):
        used = seen.weights > 0
        total += seen.weights[used].double() @ seen.left[used].double()
        weight += float(seen.weights.double().sum())
    mean = total / weight if weight else total
    return {"output_shift": mean.float()}
