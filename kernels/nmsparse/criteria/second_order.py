"""Calibrated second-order criterion: what dropping a channel does to the loss.

Our formulation. Dropping ``x_k`` changes output o by ``W_ok * x_k``. With a diagonal
Fisher matrix the loss grows by ``1/2 * x_k^2 * sum_o F_o W_ok^2``, where ``F_o`` is the
mean squared gradient of the loss with respect to output o. Its root ranks alike:
``|x_k| * sqrt(sum_o F_o W_ok^2)``. The gradients need a calibration, so the factor is
stored in the parameters file. With all ``F_o`` equal it is WINA's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.criteria.base import Criterion
from nmsparse.criteria.columns import column_squares

if TYPE_CHECKING:
    import torch


class SecondOrder(Criterion):
    """``|u_k| * sqrt(sum_o F_o W_ok^2)``."""

    name = "second_order"
    title = "Calibrated second-order"
    paper = "our formulation"
    needs = "calibration"

    def factor(self, weight: torch.Tensor) -> torch.Tensor:
        """Refuse: gradients are known to a calibration alone."""
        raise ValueError(
            "Criterion second_order has no factor for a layer. Expected one in the "
            "parameters file: make it with `offline-prune calibrate`."
        )


def factor_from(weight: torch.Tensor, output_energy: torch.Tensor) -> torch.Tensor:
    """Return ``sqrt(sum_o output_energy[o] * weight[o, k]^2)``, ``[K]`` float32.

    Args:
        weight: ``[O, K]``, all rows of a fused layer.
        output_energy: ``[O]``, mean squared gradient of the loss for every output.

    Raises:
        ValueError: if the energy has another shape or a negative value.
    """
    if output_energy.shape != weight.shape[:1] or bool((output_energy < 0).any()):
        raise ValueError(
            f"second_order: output_energy has shape {tuple(output_energy.shape)} and "
            f"minimum {output_energy.min().item() if output_energy.numel() else None}. "
            f"Expected [{weight.shape[0]}], not negative: mean squared gradients."
        )
    return column_squares(weight, row_weight=output_energy).sqrt().float()


second_order = SecondOrder()
