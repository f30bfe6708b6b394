"""``packed_linear``: activations times a packed weight, reading only what is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.dispatch import Call, choose

if TYPE_CHECKING:
    import torch

    from nmsparse.packed import PackedWeight

__all__ = ["packed_linear"]


def packed_linear(
    x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply tokens by a pruned weight.

    Args:
        x: ``[T, K]`` in the dtype of the weight. Not modified.
        weight: ``[O, K]``, packed.
        bias: ``[O]`` or None.

    Returns:
        ``[T, O]`` in the dtype of ``x``, accumulated in float32.

    Raises:
        ValueError: if shapes disagree.
        TypeError: if dtypes disagree.
    """
    out_features, in_features = weight.shape
    if x.dim() != 2 or x.shape[1] != in_features:
        raise ValueError(
            f"packed_linear: x has shape {tuple(x.shape)}. Expected "
            f"[T, K] = [T, {in_features}]: flatten it first."
        )
    if x.dtype != weight.dtype:
        raise TypeError(
            f"packed_linear: x is {x.dtype}, the weight {weight.dtype}. Expected one "
            "dtype: convert the weight before it is packed."
        )
    if bias is not None and bias.shape != (out_features,):
        raise ValueError(
            f"packed_linear: bias has shape {tuple(bias.shape)}. "
            f"Expected [{out_features}]."
        )
    backend = choose(Call.of("packed", x, None))
    result: torch.Tensor = backend(x, weight, bias)
    return result
