"""The terms of a product of lists, and whether lists, weight and terms fit together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nmsparse.ops.sparsify.lists import TokenLists


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What is applied to the sums; see ``nmsparse.linear``.

    Attributes:
        weight_scale: ``[O]`` or one number, float32: the scale of a float8 weight.
        scale: ``[T]``.
        output_scale: ``[O]``.
        token_shift: ``[T]``.
        row_sum: ``[O]``.
        constant: ``[O]``.
        addend: ``[T, O]``.
        bias: ``[O]``.
        sparse: ``[T]`` bool: false for tokens that get sum and bias alone.
    """

    weight_scale: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    output_scale: torch.Tensor | None = None
    token_shift: torch.Tensor | None = None
    row_sum: torch.Tensor | None = None
    constant: torch.Tensor | None = None
    addend: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    sparse: torch.Tensor | None = None


def check_lists(lists: TokenLists, weight: torch.Tensor, terms: Terms) -> None:
    """Verify that a product can be made of these.

    Raises:
        ValueError: if shapes or strides do not fit, or row_sum is missing.
        TypeError: if the dtype of the weight does not fit.
        RuntimeError: if the device cannot read a float8 weight.
    """
    tokens, rows = lists.values.shape[0], lists.indices.shape[0]
    if weight.dim() != 2 or weight.shape[0] != lists.in_features:
        raise ValueError(
            f"gather_lists: weight has shape {tuple(weight.shape)}. Expected [K, O] = "
            f"[{lists.in_features}, O], K-major: make it with nmsparse.k_major."
        )
    outputs = weight.shape[1]
    if weight.stride(1) != 1 and outputs > 1:
        raise ValueError(
            f"gather_lists: weight has strides {weight.stride()}. Expected contiguous "
            "rows: make it with nmsparse.k_major once, not at every step."
        )
    _check_dtypes(lists.values, weight, terms.weight_scale)
    if lists.token_shift is not None and terms.row_sum is None:
        raise ValueError(
            "gather_lists: tokens are shifted, but row_sum is missing. Expected it: "
            "the weight summed over K, from Constants.of."
        )
    if rows not in (1, tokens) or lists.counts.shape[0] != rows:
        raise ValueError(
            f"gather_lists: {rows} lists and {lists.counts.shape[0]} counts for "
            f"{tokens} tokens. Expected one of each for every token, or 1 and 1."
        )
    columns, steps = (outputs,), (tokens,)
    for name, tensor, shape in (
        ("bias", terms.bias, columns),
        ("row_sum", terms.row_sum, columns),
        ("output_scale", terms.output_scale, columns),
        ("constant", terms.constant, columns),
        ("addend", terms.addend, (tokens, outputs)),
        ("scale", terms.scale, steps),
        ("token_shift", terms.token_shift, steps),
        ("sparse", terms.sparse, steps),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"gather_lists: {name} has shape {tuple(tensor.shape)}. "
                f"Expected {list(shape)}."
            )


def _check_dtypes(
    values: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor | None
) -> None:
    if weight.dtype == torch.float8_e4m3fn:
        if weight_scale is None or weight_scale.numel() not in (1, weight.shape[1]):
            found = None if weight_scale is None else tuple(weight_scale.shape)
            raise ValueError(
                f"gather_lists: weight_scale of a float8 weight is {found}. Expected "
                f"[{weight.shape[1]}] or one number: torch.ones(()) if it has none."
            )
        _check_float8(weight.device)
        return
    if weight.dtype != values.dtype:
        raise TypeError(
            f"gather_lists: the weight is {weight.dtype}, the values {values.dtype}. "
            "Expected one dtype, or a float8_e4m3fn weight: convert the weight once."
        )
    if weight_scale is not None:
        raise ValueError(
            f"gather_lists: weight_scale with a weight of {weight.dtype}. Expected it "
            "with float8_e4m3fn alone: multiply the weight by it once."
        )


@lru_cache(maxsize=64)
def _check_float8(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise RuntimeError(
            f"gather_lists: a float8 weight on {torch.cuda.get_device_name(device)}. "
            "Expected compute capability 8.9 or later: convert the weight to bfloat16."
        )
