"""The compact form of a sparse activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class CompactActivation:
    """Kept channels of T tokens.

    Attributes:
        values: ``[T, kept]``, dtype of the activation.
        indices: ``[T, kept]`` int32, ascending channel numbers in ``[0, in_features)``.
        in_features: K of the dense activation.
    """

    values: torch.Tensor
    indices: torch.Tensor
    in_features: int

    def to_dense(self) -> torch.Tensor:
        """Return ``[T, K]`` with zeros in the dropped channels."""
        dense = self.values.new_zeros(self.values.shape[0], self.in_features)
        return dense.scatter_(1, self.indices.long(), self.values)
