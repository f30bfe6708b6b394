"""S-PTS: one number for a layer, subtracted from every input before the choice.

arXiv 2509.22166: the mean over tokens of the mean of a token. Our formulation: tokens
are weighted as in ``offline_prune.online.fit``.
"""

from __future__ import annotations

import torch

from nmsparse.ops.online import Online
from offline_prune.online.fit.evidence import Evidence
from offline_prune.online.fit.l_pts import channel_means
from offline_prune.online.fit.options import FitOptions


def fit(
    evidence: Evidence, online: Online, *, options: FitOptions
) -> dict[str, torch.Tensor]:
    """Return ``channel_shift``, float32 ``[K]``, all values the same.

    Args:
        evidence: the layer.
        online: what it has so far; not used.
        options: not used.
    """
    # Every token has as many channels: the mean of means is the mean.
    mean = channel_means(evidence).mean()
    return {"channel_shift": mean.float().repeat(evidence.in_features)}
