"""Which copies of a weight a layer keeps: vLLM's, K-major rows, or packed values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nmsparse.native.memory import k_major, streamed_empty
from nmsparse.packed import PackedWeight
from vllm_sparse.execution import MIN_SPARSITY, ROWS_GAIN

if TYPE_CHECKING:
    from vllm_sparse.execution import Execution


@dataclass(slots=True)
class Weights:
    """Our copies of one layer's weight; None for those it does not have.

    Attributes:
        rows: ``[K, O]``, K-major, for sparse activations.
        order: ``[K]``, the channel of each row; None if they are in order.
        packed: ``[O, K]`` bits and values, for pruned weights.
        sparsity: share of zeros found in the weight.
    """

    rows: torch.Tensor | None = None
    order: torch.Tensor | None = None
    packed: PackedWeight | None = None
    sparsity: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of our copies."""
        rows = 0 if self.rows is None else self.rows.untyped_storage().nbytes()
        return rows + (0 if self.packed is None else self.packed.nbytes)

    def __bool__(self) -> bool:
        return self.rows is not None or self.packed is not None


def take_weight(
    weight: torch.Tensor,
    *,
    density: float | None,
    execution: Execution,
    order: torch.Tensor | None = None,
) -> Weights:
    """Copy a dense weight into the form that reads fewest bytes for few tokens.

    Args:
        weight: ``[O, K]`` of this rank, fused. Not modified.
        density: share of channels that the layer's activation keeps; None if dense.
        execution: the engine's choices.
        order: ``[K]``, channels in the order that rows are to have; None for their own.

    Returns:
        One copy at most: rows if the activation is sparser than the packed weight is
        small, else the packed weight if there are zeros enough; rows for a dense layer
        only if ``dense_weights`` asks for them.
    """
    sparsity = 1.0 - int(weight.count_nonzero()) / max(1, weight.numel())
    # Bytes of bits and values against the dense weight's.
    packed_share = 1.0 - sparsity + 1.0 / (8 * weight.element_size())
    packable = execution.sparse_weights != "off" and sparsity >= MIN_SPARSITY
    if packable and (density is None or packed_share <= density + ROWS_GAIN):
        packed = to_streamed(PackedWeight.pack(weight))
        return Weights(packed=packed, sparsity=sparsity)
    if density is not None or execution.dense_weights == "auto":
        if order is not None:
            weight = weight.index_select(1, order)
        return Weights(rows=k_major(weight), order=order, sparsity=sparsity)
    return Weights(sparsity=sparsity)


def to_streamed(packed: PackedWeight) -> PackedWeight:
    """Move bits and values to huge pages, where they are read fastest."""
    return PackedWeight(
        streamed_empty(tuple(packed.bits.shape), packed.bits.dtype).copy_(packed.bits),
        streamed_empty(tuple(packed.values.shape), packed.dtype).copy_(packed.values),
        packed.offsets,
        packed.in_features,
    )
