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
    *,
    token_shift: torch.Tensor | None = None,
    row_sum: torch.Tensor | None = None,
    addend: torch.Tensor | None = None,
    output_scale: torch.Tensor | None = None,
    constant: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply sparse tokens by a weight whose rows are input channels.

    ``y[t] = scale[t] * (1 + output_scale) * sum_i values[t, i] * weight[indices[t, i]]
    + token_shift[t] * row_sum + constant + bias + addend[t]``

    Args:
        x: the kept channels of T tokens; its ``scale`` is applied.
        weight: ``[K, O]``, K-major: row k holds the weights of input channel k.
            ``nmsparse.k_major`` makes the layout that is read fastest.
        bias: ``[O]`` or None.
        token_shift: ``[T]`` that ``compact`` subtracted, or None.
        row_sum: ``[O]``, the weight summed over K: what a token shift of 1 gives.
        addend: ``[T, O]`` or None, for example a low-rank term.
        output_scale: ``[O]`` or None.
        constant: ``[O]`` or None: a bias that is kept in float32.

    Returns:
        ``[T, O]`` in the dtype of ``x.values``, accumulated in float32.

    Raises:
        ValueError: if shapes disagree, or one of token_shift and row_sum is missing.
        TypeError: if the weight has another dtype than the values.
    """
    tokens = x.values.shape[0]
    if weight.dim() != 2 or weight.shape[0] != x.in_features:
        raise ValueError(
            f"linear: weight has shape {tuple(weight.shape)}. Expected "
            f"[K, O] = [{x.in_features}, O], K-major: pass weight.t().contiguous()."
        )
    if weight.dtype != x.values.dtype:
        raise TypeError(
            f"linear: the weight is {weight.dtype}, the activation {x.values.dtype}. "
            "Expected one dtype: convert the weight once."
        )
    if (token_shift is None) != (row_sum is None):
        raise ValueError(
            "linear: only one of token_shift and row_sum is given. Expected both."
        )
    for name, tensor, shape in (
        ("bias", bias, (weight.shape[1],)),
        ("token_shift", token_shift, (tokens,)),
        ("row_sum", row_sum, (weight.shape[1],)),
        ("addend", addend, (tokens, weight.shape[1])),
        ("output_scale", output_scale, (weight.shape[1],)),
        ("constant", constant, (weight.shape[1],)),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"linear: {name} has shape {tuple(tensor.shape)}. "
                f"Expected {list(shape)}."
            )
    backend = choose(Call.of("linear", x.values, None))
    result: torch.Tensor = backend(
        x, weight, bias, token_shift, row_sum, addend, output_scale, constant
    )
    return result
