"""A packed weight in a file: ``X.weight_bitmask`` and ``X.weight_values``.

The two tensors take the place of ``X.weight`` in safetensors files. What is read comes
from anywhere, so every property that the kernels rely on is checked.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from nmsparse import bitmask as bits
from nmsparse.packed import DTYPES, PADDING, PackedWeight, row_offsets
from nmsparse.packed_manifest import BITMASK, VALUES, PackedFormatError


def encode(weight: PackedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two tensors of a file.

    Args:
        weight: ``[O, K]``, packed.

    Returns:
        The bitmask, ``[O, ceil(K / 8)]`` uint8, and the values, ``[stored]`` in the
        dtype of the weight.
    """
    values = weight.values[: weight.stored]
    return bits.to_bytes(weight.bits, weight.in_features), values


def decode(
    name: str, bitmask: torch.Tensor, values: torch.Tensor, *, shape: tuple[int, int]
) -> PackedWeight:
    """Check the two tensors of a file and return the weight.

    Args:
        name: the module, for messages.
        bitmask: ``[O, ceil(K / 8)]`` uint8, little-endian bits along K.
        values: ``[stored]`` float16, bfloat16 or float32. Any value, NaN included.
        shape: ``(O, K)`` of the weight.

    Raises:
        PackedFormatError: naming the tensor that has a wrong dtype or shape, bits set
            beyond K, or values that are not as many as the set bits.
    """
    out_features, in_features = shape
    expected = (out_features, bits.bytes_of(in_features))
    if bitmask.dtype != torch.uint8 or tuple(bitmask.shape) != expected:
        raise PackedFormatError(
            f"{name}{BITMASK} is {_describe(bitmask)}. Expected "
            f"torch.uint8 {list(expected)} for a weight of {list(shape)}."
        )
    if values.dtype not in DTYPES or values.dim() != 1:
        raise PackedFormatError(
            f"{name}{VALUES} is {_describe(values)}. Expected float16, bfloat16 or "
            "float32 with one dimension."
        )
    words = bits.from_bytes(bitmask.contiguous())
    if not bits.tail_is_zero(words, in_features):
        raise PackedFormatError(
            f"{name}{BITMASK} has bits set beyond channel {in_features - 1}. Expected "
            "zeros there: the file is damaged, copy it again."
        )
    offsets = row_offsets(words)
    if int(offsets[-1]) != values.numel():
        raise PackedFormatError(
            f"{name}{VALUES} holds {values.numel()} values, but {name}{BITMASK} has "
            f"{int(offsets[-1])} bits set. Expected as many: the file is damaged, copy "
            "it again."
        )
    return PackedWeight(words, pad(values, (0, PADDING)), offsets, in_features)


def _describe(tensor: torch.Tensor) -> str:
    """Return dtype and shape for a message."""
    return f"{tensor.dtype} {list(tensor.shape)}"
