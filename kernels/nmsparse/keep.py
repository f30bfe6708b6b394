"""Selection of the elements to keep: the one place that picks N of M.

The tie rule is part of the contract. Every element gets a unique integer key: the bit
pattern of its score in an order-preserving form, then its position in the group, lower
positions first. The N largest keys are kept, so a selection is deterministic, the same
on every backend, and exactly N elements of each group are chosen.
"""

from __future__ import annotations

import torch

from nmsparse.pattern import Pattern

_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
}


def order_keys(
    scores: torch.Tensor, group: int, *, signed: bool = True
) -> torch.Tensor:
    """Return unique integer keys that order ``scores`` within groups.

    Args:
        scores: ``[..., K]`` float16, bfloat16 or float32, any sign. NaN orders above
            everything, so a NaN is kept and stays visible. -0.0 equals 0.0.
        group: group size; divides K.
        signed: False if no score has its sign bit set (absolute values), which saves
            half of the work.

    Returns:
        ``[..., K // group, group]`` int32 (16-bit scores) or int64 (float32 scores).

    Raises:
        TypeError: for another dtype.
    """
    if scores.dtype not in _BITS:
        raise TypeError(
            f"scores have dtype {scores.dtype}. Expected one of "
            f"{', '.join(str(d) for d in _BITS)}: convert them first."
        )
    bits_dtype = _BITS[scores.dtype]
    magnitude_bits = torch.iinfo(bits_dtype).max
    if signed:
        # Adding zero turns -0.0 into 0.0; NaN may carry a sign, so it is replaced.
        scores = torch.where(scores.isnan(), torch.nan, scores + 0.0)
    bits = scores.contiguous().view(bits_dtype)
    if signed:
        bits = torch.where(bits < 0, bits ^ magnitude_bits, bits)
    wide = bits.to(torch.int32 if bits_dtype is torch.int16 else torch.int64)
    wide = wide.unflatten(-1, (-1, group))
    # Lower positions win ties. int16 << 16 fits int32 exactly, sign included.
    position = torch.arange(group - 1, -1, -1, dtype=wide.dtype, device=wide.device)
    keys: torch.Tensor = (wide << 16) | position
    return keys


def select_keep(
    scores: torch.Tensor, pattern: Pattern, *, signed: bool = True
) -> torch.Tensor:
    """Choose the elements to keep: the highest scores of every group.

    Args:
        scores: ``[..., K]`` float, higher is better.
        pattern: N:M groups, or unstructured (the whole row is one group).
        signed: False if no score has its sign bit set.

    Returns:
        ``[..., K]`` bool, True where the element stays. Exactly N per group.

    Raises:
        ValueError: if K is not a multiple of M.
    """
    kept, group = pattern.group(scores.shape[-1])
    if kept == group or scores.numel() == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    keys = order_keys(scores, group, signed=signed)
    threshold = keys.kthvalue(group - kept + 1, dim=-1, keepdim=True).values
    return (keys >= threshold).flatten(-2)


def verify(tensor: torch.Tensor, pattern: Pattern) -> bool:
    """Tell whether ``tensor`` (``[..., K]``) follows ``pattern`` along K."""
    kept, group = pattern.group(tensor.shape[-1])
    nonzeros = (tensor != 0).unflatten(-1, (-1, group)).sum(-1)
    return bool((nonzeros <= kept).all())
