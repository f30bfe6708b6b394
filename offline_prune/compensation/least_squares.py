"""Least-squares scale of each output: ``a = w C what / what C what``; our formulation.

The scale with the least squared error of the layer on the calibration inputs: relative
to ``w C w`` the error falls to ``1 - rho^2`` with the correlation rho of the two
outputs. It is at most the scale that matches energies. Clipping keeps it from
harming: the error is convex in the scale, and the limits contain 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from offline_prune.compensation.output_scale import OutputScale, energies
from offline_prune.statistics.needs import Need


class LeastSquares(OutputScale):
    """Scale each output so that the layer's squared error is least."""

    name: ClassVar[str] = "least_squares"
    title: ClassVar[str] = "Least-squares scale"
    paper: ClassVar[str] = "our formulation, beside arXiv 2602.07375"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    def scales(
        self, dense: torch.Tensor, pruned: torch.Tensor, moment: torch.Tensor
    ) -> torch.Tensor:
        """Return the scales, float32 ``[O]``; see :meth:`OutputScale.scales`."""
        found = energies(dense, pruned, moment, with_dense=False)
        scale = torch.where(found.pruned > 0, found.cross / found.pruned, 1.0)
        return scale.clamp(self.low, self.high).float()
