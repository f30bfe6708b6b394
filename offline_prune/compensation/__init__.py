"""Compensations: closed-form corrections of a pruned linear. One file each.

Listing them loads no torch. A compensation runs after a scorer and changes neither what
was removed nor how much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.registry import Registry

if TYPE_CHECKING:
    from offline_prune.compensation.base import Compensation

compensations: Registry[type[Compensation]] = Registry("compensation")
compensations.add("energy", "offline_prune.compensation.energy:Energy")
compensations.add(
    "least_squares", "offline_prune.compensation.least_squares:LeastSquares"
)
compensations.add("mean_shift", "offline_prune.compensation.mean_shift:MeanShift")
compensations.add(
    "output_energy", "offline_prune.compensation.output_energy:OutputEnergy"
)
