"""What is known about a fit, as JSON data beside the tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One learned part at the gate.

    Attributes:
        layer: vLLM's name of the layer; the block's for gradient steps.
        part: name of the mitigation, or ``gradient``.
        before: robust error of the block's held-out output without it.
        after: the same with it.
        kept: whether it was kept; if not, zeros are stored, or what was there before
            the gradient steps.
    """

    layer: str
    part: str
    before: float
    after: float
    kept: bool


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """One block. All errors are those of its output on held-out windows.

    Attributes:
        name: full name of the block.
        parts: learned parts, in the order in which they were judged.
        objective_before: the robust error that the gate looks at (mean over tokens,
            squared, against the chosen target) with nothing learned.
        objective_after: with all that was kept; never greater.
        error_before: relative error of the sparse stream against the dense one, median
            over tokens, with nothing learned in this block.
        error_after: with all that was kept.
    """

    name: str
    parts: tuple[PartRecord, ...]
    objective_before: float
    objective_after: float
    error_before: float
    error_after: float

    def data(self) -> dict[str, Any]:
        """Return JSON data."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> BlockRecord:
        """Return what :meth:`data` was made of."""
        parts = tuple(PartRecord(**part) for part in data["parts"])
        return cls(**{**data, "parts": parts})
