"""What the compensations by a scale per output share: energies of outputs.

With a second moment ``C`` of the inputs and the rows w (dense) and what (pruned):
``E = w C w``, ``Ehat = what C what``, ``cross = w C what``. A row scaled by ``a`` has
the squared error ``E - 2 a cross + a^2 Ehat``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from offline_prune.compensation.base import Compensation

if TYPE_CHECKING:
    from offline_prune.statistics.inputs import InputStatistics

_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Energies:
    """Of each output, float64 ``[O]``.

    Attributes:
        dense: ``w C w``; None if it was not asked for.
        pruned: ``what C what``.
        cross: ``w C what``.
    """

    dense: torch.Tensor | None
    pruned: torch.Tensor
    cross: torch.Tensor


class OutputScale(Compensation):
    """Base of compensations that multiply each row by one number."""

    centred: bool = Field(
        default=False,
        description="Measure outputs about their means: right if a mean shift follows. "
        "Otherwise about zero.",
    )
    low: float = Field(default=0.8, ge=0.0, le=1.0, description="Least scale.")
    high: float = Field(default=1.25, ge=1.0, description="Greatest scale.")

    def apply(
        self,
        dense: torch.Tensor,
        pruned: torch.Tensor,
        keep: torch.Tensor,
        statistics: InputStatistics | None,
    ) -> torch.Tensor:
        """Return the weight with scaled rows; see :meth:`Compensation.apply`."""
        inputs = self.inputs(dense, statistics)
        if inputs.tokens == 0:
            return pruned
        scales = self.scales(dense, pruned, self.moment(inputs).to(dense.device))
        return torch.where(keep, pruned * scales[:, None], 0.0)

    def scales(
        self, dense: torch.Tensor, pruned: torch.Tensor, moment: torch.Tensor
    ) -> torch.Tensor:
        """Return a scale for each output, float32 ``[O]``, within the limits.

        Args:
            dense: float32 ``[O, K]``, before pruning.
            pruned: float32 ``[O, K]``.
            moment: float32 ``[K, K]``, second moment or covariance of the inputs, up
                to a factor.
        """
        raise NotImplementedError

    def moment(self, inputs: InputStatistics) -> torch.Tensor:
        """Return the matrix that outputs are measured with, float32 ``[K, K]``.

        Raises:
            ValueError: if the Gram matrix was not collected.
        """
        # Scales do not depend on a factor, so the sum does instead of the mean.
        return inputs.covariance if self.centred else inputs.hessian()


def energies(
    dense: torch.Tensor,
    pruned: torch.Tensor,
    moment: torch.Tensor,
    *,
    with_dense: bool,
) -> Energies:
    """Return the energies of all outputs.

    Args:
        dense: float32 ``[O, K]``.
        pruned: float32 ``[O, K]``.
        moment: float32 ``[K, K]``, symmetric.
        with_dense: whether ``w C w`` is wanted: it doubles the time.
    """
    parts: list[list[torch.Tensor]] = [[], [], []]
    for start in range(0, len(dense), _ROWS):
        w, what = dense[start : start + _ROWS], pruned[start : start + _ROWS]
        image = what @ moment
        parts[0].append(_dot(what, image))
        parts[1].append(_dot(w, image))
        if with_dense:
            parts[2].append(_dot(w, w @ moment))
    found, cross = torch.cat(parts[0]), torch.cat(parts[1])
    return Energies(torch.cat(parts[2]) if with_dense else None, found, cross)


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the rows' products, float64 ``[R]``: differences of them matter."""
    return (left * right).sum(1, dtype=torch.float64)
