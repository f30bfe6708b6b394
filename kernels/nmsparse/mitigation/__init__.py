"""Mitigations of online sparsity: what reduces the error of a selection.

Each takes one slot of the algebra in ``nmsparse.ops.online`` and keeps the product
sparse. No torch here. See CONTRIBUTING.md, "Add a mitigation".
"""

from __future__ import annotations

from collections.abc import Sequence

from nmsparse.mitigation.base import Mitigation, Slot
from nmsparse.registry import Registry

__all__ = ["Mitigation", "Slot", "check_mitigations", "mitigations"]

mitigations: Registry[Mitigation] = Registry("mitigation")
mitigations.add("d_pts", "nmsparse.mitigation.shift:D_PTS")
mitigations.add("d_pts_median", "nmsparse.mitigation.shift:D_PTS_MEDIAN")
mitigations.add("s_pts", "nmsparse.mitigation.shift:S_PTS")
mitigations.add("l_pts", "nmsparse.mitigation.shift:L_PTS")
mitigations.add("var", "nmsparse.mitigation.variance:VAR")
mitigations.add("ls", "nmsparse.mitigation.output:LS")
mitigations.add("output_shift", "nmsparse.mitigation.output:OUTPUT_SHIFT")
mitigations.add("r_sparse", "nmsparse.mitigation.residual:R_SPARSE")


def check_mitigations(names: Sequence[str]) -> tuple[Mitigation, ...]:
    """Return the mitigations of these names.

    Raises:
        ValueError: if a name is unknown, or two take one slot.
    """
    found = tuple(mitigations.get(name) for name in names)
    taken: dict[str, str] = {}
    for item in found:
        if item.slot in taken:
            raise ValueError(
                f"Mitigations {taken[item.slot]} and {item.name} both take the slot "
                f"{item.slot}. Expected at most one of a slot: remove one of them."
            )
        taken[item.slot] = item.name
    return found
