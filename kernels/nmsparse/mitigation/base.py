"""What a mitigation of online sparsity is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Slot: TypeAlias = Literal[
    "shift", "variance", "output_scale", "output_shift", "residual"
]


@dataclass(frozen=True, slots=True)
class Mitigation:
    """One named part of what reduces the error of a selection.

    Attributes:
        name: in configurations.
        title: for people.
        paper: arXiv id, or where the formula comes from.
        slot: the place it takes; one mitigation a slot.
        parameters: the learned tensors it needs, by their names in ``Parameters``.
        statistic: what is subtracted from each token: its ``mean`` or ``median``.
    """

    name: str
    title: str
    paper: str
    slot: Slot
    parameters: tuple[str, ...] = ()
    statistic: Literal["mean", "median"] | None = None
