"""The one copy of a weight: K-major in memory, ``[O, K]`` for everybody else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nmsparse.packed import PADDING, PackedWeight

if TYPE_CHECKING:
    from torch.nn import Module


def store_k_major(layer: Module) -> torch.Tensor:
    """Lay ``layer.weight`` out by input channels, and return its rows.

    The parameter stays: it becomes the view ``rows.t()`` of shape ``[O, K]``, so
    loaders, LoRA and products that take ``[O, K]`` go on as before, and what is copied
    into it lands in the rows. The old storage is released, so memory is that of one
    weight, and of two while this one is copied.

    Args:
        layer: its ``weight`` is ``[O, K]``. Nothing is done if it is K-major already.

    Returns:
        ``[K, O]``, rows contiguous: another view of the parameter.
    """
    weight: torch.Tensor = layer.weight.data  # type: ignore[assignment]
    if not is_k_major(weight):
        rows = torch.empty(weight.shape[::-1], dtype=weight.dtype, device=weight.device)
        rows.copy_(weight.t())
        layer.weight.data = rows.t()
    return layer.weight.data.t()  # type: ignore[operator]


def is_k_major(weight: torch.Tensor) -> bool:
    """Return whether ``[O, K]`` holds the outputs of a channel side by side."""
    return weight.t().is_contiguous()


def share_of_zeros(weight: torch.Tensor) -> float:
    """Return the share of zeros of ``[O, K]``; it waits for the device."""
    return 1.0 - int(weight.count_nonzero()) / max(1, weight.numel())


@dataclass(slots=True)
class Held:
    """What a layer holds beside the weight.

    Attributes:
        sparsity: share of zeros found in the weight.
        packed: bits and values of a pruned weight, for few tokens; None if none.
    """

    sparsity: float = 0.0
    packed: PackedWeight | None = None

    @property
    def nbytes(self) -> int:
        """Bytes beside the weight: its K-major form takes none."""
        return 0 if self.packed is None else self.packed.nbytes


def repack(held: PackedWeight, weight: torch.Tensor) -> None:
    """Pack a weight that was loaded again into the tensors that graphs hold.

    Args:
        held: the packed copy, overwritten.
        weight: ``[O, K]``.

    Raises:
        RuntimeError: if the weight has fewer zeros than the copy has room for.
    """
    new = PackedWeight.pack(weight.contiguous())
    room = held.values.numel()
    if new.values.numel() > room:
        raise RuntimeError(
            f"A reloaded weight {tuple(weight.shape)} has {new.stored} non-zeros, but "
            f"its packed copy holds {room - PADDING}, and CUDA graphs keep its place. "
            "Expected weights that are pruned alike: start the engine again, or serve "
            "with --sparse-weights off."
        )
    held.bits.copy_(new.bits)
    held.offsets.copy_(new.offsets)
    held.values[: new.values.numel()].copy_(new.values)
    held.values[new.values.numel() :].zero_()


def copy_of(packed: PackedWeight | None) -> PackedWeight | None:
    """Return a packed weight in memory of its own."""
    if packed is None:
        return None
    tensors = (packed.bits.clone(), packed.values.clone(), packed.offsets.clone())
    return PackedWeight(*tensors, packed.in_features)
