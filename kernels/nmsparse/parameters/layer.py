"""``Parameters``: the learned tensors of one (fused) layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from nmsparse.parameters.tensors import PARAMETERS, check_tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """Every tensor is optional.

    Attributes:
        factor: ``[K]`` float32, not negative: weight of a channel in the score.
        channel_shift: ``[K]`` float32, subtracted before scoring (S-PTS, L-PTS).
        output_scale: ``[O]`` float32; the product is multiplied by 1 plus it (LS).
        output_shift: ``[O]`` float32, added to the result.
        low_rank_in: ``[r, K]`` float, what reads the dropped channels (R-Sparse).
        low_rank_out: ``[O, r]`` float, what makes outputs of it.
        channel_groups: ``[K]`` int64, a permutation: groups of M are taken over
            ``x[channel_groups]``.
    """

    factor: torch.Tensor | None = None
    channel_shift: torch.Tensor | None = None
    output_scale: torch.Tensor | None = None
    output_shift: torch.Tensor | None = None
    low_rank_in: torch.Tensor | None = None
    low_rank_out: torch.Tensor | None = None
    channel_groups: torch.Tensor | None = None

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors that are there, with their names."""
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor is not None:
                yield field.name, tensor

    def check(self, in_features: int, out_features: int) -> None:
        """Verify shapes, dtypes and values.

        Raises:
            ValueError: naming the tensor.
        """
        if (self.low_rank_in is None) != (self.low_rank_out is None):
            raise ValueError(
                "Only one of low_rank_in and low_rank_out is given. Expected both."
            )
        sizes = {"K": in_features, "O": out_features}
        if self.low_rank_in is not None:
            sizes["r"] = self.low_rank_in.shape[0]
        for name, tensor in self.items():
            check_tensor(name, tensor)
            expected = [sizes[letter] for letter in PARAMETERS[name].shape]
            if list(tensor.shape) != expected:
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}. Expected {expected}, for "
                    f"{in_features} inputs and {out_features} outputs: the parameters "
                    "belong to another layer or model."
                )

    def to(
        self, device: torch.device | str, *, dtype: torch.dtype | None = None
    ) -> Parameters:
        """Return a copy on a device.

        Args:
            device: where to.
            dtype: of the low-rank matrices; as they are if None. Others keep theirs.
        """
        moved = {
            name: tensor.to(
                device, dtype=dtype if name.startswith("low_rank") else tensor.dtype
            )
            for name, tensor in self.items()
        }
        return Parameters(**moved)


NO_PARAMETERS = Parameters()
