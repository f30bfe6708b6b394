"""What a criterion of online sparsity is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch

Needs: TypeAlias = Literal["nothing", "weight", "calibration", "batch"]


class Criterion(Protocol):
    """A score ``|u| * factor`` of the channels of a token; the highest are kept.

    ``u`` is the shifted activation. The factor is a vector over channels that is
    multiplied in float32; without one the score is ``|u|`` itself.

    Attributes:
        name: in configurations.
        title: for people.
        paper: arXiv id, or where the formula comes from.
        needs: what the factor is made of: ``nothing`` (there is none), the ``weight``,
            a ``calibration`` (it is read from the parameters file), or the ``batch``.
        per_token: whether a token's selection depends on that token alone.
    """

    name: str
    title: str
    paper: str
    needs: Needs = "nothing"
    per_token: bool = True

    def factor(self, weight: torch.Tensor) -> torch.Tensor | None:
        """Return the static factor of a layer, ``[K]`` float32; None if it has none.

        Args:
            weight: ``[O, K]``, all rows of a fused layer.

        Raises:
            ValueError: if the factor comes from a calibration.
        """
        return None

    def batch_factor(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the factor of one step, ``[K]`` float32; None if it has none.

        Args:
            x: ``[T, K]``, the tokens that are sparsified in this step.
        """
        return None
