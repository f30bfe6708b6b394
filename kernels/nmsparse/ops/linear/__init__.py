"""``linear``: compact activations times a K-major weight, reading only kept rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nmsparse.dispatch import Call, choose

if TYPE_CHECKING:
    import torch

    from nmsparse.ops.sparsify import CompactActivation

__all__ = ["linear"]


def linear(
    x: CompactActivation,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply sparse tokens by a weight whose rows are input channels.

    Args:
        x: the kept channels of T tokens.
        weight: ``[K, O]``, K-major: row k holds the weights of input channel k.
        bias: ``[O]`` or None.

    Returns:
        ``[T, O]`` in the dtype of ``x.values``, accumulated in float32.

    Raises:
        ValueError: if shapes disagree.
    """
    if weight.dim() != 2 or weight.shape[0] != x.in_features:
        raise ValueError(
            f"linear: weight has shape {tuple(weight.shape)}. Expected "
            f"[K, O] = [{x.in_features}, O], K-major: pass weight.t().contiguous()."
        )
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(
            f"linear: bias has shape {tuple(bias.shape)}. Expected [{weight.shape[1]}]."
        )
    backend = choose(Call.of("linear", x.values, None))
    result: torch.Tensor = backend(x, weight, bias)
    return result
