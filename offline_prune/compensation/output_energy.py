"""Energy scale of each output: ``a = sqrt(w C w / what C what)``; our formulation.

The reading of the energy compensation of Yu et al. 2026 (arXiv 2602.07375) on outputs
instead of weights: it restores the energy of every output exactly. ``theta`` mixes it
with the least-squares scale, ``a_LS^(1 - theta) * a^theta``.

Matching energies can raise the layer's error. With the correlation rho of dense and
pruned output and ``k = 1 / a < 1`` it helps exactly where ``rho > (1 + k) / 2``; it
never does where inputs are uncorrelated. The gate, on by default, scales only the
outputs whose error falls.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from offline_prune.compensation.output_scale import OutputScale, energies
from offline_prune.statistics.needs import Need


class OutputEnergy(OutputScale):
    """Scale each output to the energy it had."""

    name: ClassVar[str] = "output_energy"
    title: ClassVar[str] = "Energy of outputs"
    paper: ClassVar[str] = "Yu et al. 2026, arXiv 2602.07375; our formulation"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.GRAM})

    gate: bool = Field(
        default=True, description="Scale only outputs whose squared error falls."
    )
    theta: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="1 matches energies, 0 is the least-squares scale, between them "
        "geometrically.",
    )

    def scales(
        self, dense: torch.Tensor, pruned: torch.Tensor, moment: torch.Tensor
    ) -> torch.Tensor:
        """Return the scales, float32 ``[O]``; see :meth:`OutputScale.scales`."""
        found = energies(dense, pruned, moment, with_dense=True)
        assert found.dense is not None
        usable = (found.pruned > 0) & (found.dense > 0)
        match = (found.dense / found.pruned).sqrt()
        least = (found.cross / found.pruned).clamp(min=0)
        scale = torch.where(usable, least ** (1 - self.theta) * match**self.theta, 1.0)
        scale = scale.clamp(self.low, self.high)
        if self.gate:
            # error(a) - error(1), from error(a) = E - 2 a cross + a^2 Ehat.
            change = (scale.square() - 1) * found.pruned - 2 * (scale - 1) * found.cross
            scale = torch.where(change < 0, scale, 1.0)
        return scale.float()
