"""The compact form of a sparse activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class CompactActivation:
    """Kept channels of T tokens.

    Attributes:
        values: ``[T, kept]``, dtype of the activation; a shift is subtracted already.
        indices: ``[T, kept]`` int32, ascending channel numbers in ``[0, in_features)``.
        in_features: K of the dense activation.
        scale: ``[T]`` float32 that the product of a token is multiplied by; None for 1.
    """

    values: torch.Tensor
    indices: torch.Tensor
    in_features: int
    scale: torch.Tensor | None = None

    def to_dense(self) -> torch.Tensor:
        """Return ``[T, K]`` with zeros in the dropped channels, not scaled."""
        dense = self.values.new_zeros(self.values.shape[0], self.in_features)
        return dense.scatter_(1, self.indices.long(), self.values)
