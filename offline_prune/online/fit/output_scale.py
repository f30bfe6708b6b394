"""LS: a factor ``1 + d`` for each output of the sparse product.

arXiv 2509.22166 (``var_shift`` of its code) learns it by gradient steps. Our
formulation: the weighted least-squares slope, pulled towards ``d = 0``. With the sparse
product z (VAR included) and what the dense output is above the sparse one, r::

    d_o = sum_t w_t z_to r_to / (sum_t w_t z_to^2 + ridge * mean_o sum_t w_t z_to^2)
"""

from __future__ import annotations

import torch

from nmsparse.ops.online import Online
from offline_prune.online.fit.evidence import Evidence
from offline_prune.online.fit.options import FitOptions


def fit(
    evidence: Evidence, online: Online, *, options: FitOptions
) -> dict[str, torch.Tensor]:
    """Return ``output_scale``, float32 ``[O]``.

    Args:
        evidence: the layer.
        online: what it has so far; its output scale is neutral.
        options: ``ridge``.
    """
    energy = evidence.weight.new_zeros(evidence.out_features).double()
    cross = torch.zeros_like(energy)
    for seen in evidence.seen(online):
        used = seen.weights > 0
        weights, product = seen.weights[used].double(), seen.product[used].double()
        energy += weights @ product.square()
        cross += weights @ (product * seen.left[used])
    energy += options.ridge * energy.mean()
    scale = torch.where(energy > 0, cross / energy, 0)
    return {"output_scale": scale.float()}
