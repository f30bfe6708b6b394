"""How much each output channel deserves protection: energy, PAPR and a curvature map.

The quantities of OGAS (``ogas.py``); formulas are ours, from its abstract.
"""

from __future__ import annotations

import torch


def energy(outputs: torch.Tensor) -> torch.Tensor:
    """Return ``sqrt(sum_t y_t^2)`` of each channel, float64 ``[O]``.

    Args:
        outputs: ``[T, O]``, float.
    """
    return outputs.double().square().sum(0).sqrt()


def papr(outputs: torch.Tensor) -> torch.Tensor:
    """Return the peak-to-average power ratio of each channel, float64 ``[O]``.

    ``max_t y_t^2 / mean_t y_t^2``, from 1 (constant magnitude) to T (one peak); 1 for
    a channel that is always 0.

    Args:
        outputs: ``[T, O]``, float, at least one token.
    """
    power = outputs.double().square()
    mean = power.mean(0)
    return torch.where(mean > 0, power.amax(0) / mean, 1.0)


def protection(
    energies: torch.Tensor, ratios: torch.Tensor, weight: float
) -> torch.Tensor:
    """Combine energy and PAPR: ``minmax(w minmax(ln e) + (1 - w) minmax(ln P))``.

    A channel of high energy and flat magnitude, "static and redundant", ends lower
    than one of the same energy with peaks. A channel that is always 0 gets 0 and is
    left out of the ranges, which its ``ln 0`` would fill.

    Args:
        energies: ``[O]``.
        ratios: ``[O]``, PAPR.
        weight: of the energy, 0 to 1.

    Returns:
        float64 ``[O]`` in [0, 1]; all 0 if all channels are alike.
    """
    result = torch.zeros_like(energies, dtype=torch.float64)
    alive = energies > 0
    if not bool(alive.any()):
        return result
    by_energy = _unit_range(energies[alive].double().log())
    by_ratio = _unit_range(ratios[alive].double().log())
    result[alive] = _unit_range(weight * by_energy + (1.0 - weight) * by_ratio)
    return result


def curvature(position: torch.Tensor, kappa: float) -> torch.Tensor:
    """Bend [0, 1] onto itself: ``(1 - exp(-kappa z)) / (1 - exp(-kappa))``.

    Args:
        position: ``z``, float64, in [0, 1].
        kappa: above 0 concave (most channels protected alike), below 0 convex (only
            the top ones), 0 the identity.
    """
    if abs(kappa) < 1e-9:
        return position.clone()
    bent = torch.expm1(-kappa * position)
    return bent / torch.expm1(torch.tensor(-kappa, dtype=torch.float64))


def _unit_range(values: torch.Tensor) -> torch.Tensor:
    low, high = values.amin(), values.amax()
    # Logarithms that differ by less are rounding of the products.
    if float(high - low) <= 1e-6:
        return torch.zeros_like(values)
    return (values - low) / (high - low)
