"""``GroupPacked``: an N:M weight with exactly N stored values in every group.

A group with fewer non-zeros stores zeros to fill up, so every row is equally long, and
where a value lies follows from its channel alone. A 16-bit 2:4 weight takes 9/16 of its
dense bytes: half of the values, and one bit a channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nmsparse import bitmask
from nmsparse.dispatch import explain
from nmsparse.keep import select_keep
from nmsparse.packed import DTYPES
from nmsparse.packed_tensors import as_integers, expect_tensor, row_blocks
from nmsparse.pattern import NMPattern, parse_pattern


@dataclass(frozen=True, slots=True, eq=False)
class GroupPacked:
    """A pruned weight ``[O, K]``: one bit a channel, and N values of every M channels.

    Attributes:
        bits: ``[O, ceil(K / 64)]`` int64, as in ``PackedWeight``; every group of M has
            exactly N bits set, those of all its non-zeros among them.
        values: ``[O, K // M * N]`` float16, bfloat16 or float32, ascending channels.
        pattern: N:M; M divides 64 or is a multiple of it.
        in_features: K, a multiple of M.
    """

    bits: torch.Tensor
    values: torch.Tensor
    pattern: NMPattern
    in_features: int

    @classmethod
    def pack(cls, weight: torch.Tensor, pattern: str | NMPattern) -> GroupPacked:
        """Pack a dense weight that follows the pattern.

        ``-0.0`` is zero and comes back as ``+0.0``, as from ``PackedWeight``. Filled-up
        places are the first zeros of a group.

        Args:
            weight: ``[O, K]`` float16, bfloat16 or float32. Not modified.
            pattern: N:M, for example ``2:4``.

        Raises:
            ValueError: for another shape, a pattern that the form cannot hold, or a
                weight that violates it: the first row and group are named.
            TypeError: for another dtype.
        """
        found = _groups(pattern)
        if weight.dim() != 2:
            raise ValueError(
                f"GroupPacked: weight has shape {tuple(weight.shape)}. Expected [O, K]."
            )
        if weight.dtype not in DTYPES:
            raise TypeError(
                f"GroupPacked: weight is {weight.dtype}. Expected float16, bfloat16 or "
                "float32: quantized weights cannot be packed."
            )
        out_features, in_features = weight.shape
        kept, group = found.group(in_features)
        words = bitmask.words_of(in_features)
        bits = weight.new_zeros(out_features, words, dtype=torch.int64)
        values = weight.new_zeros(out_features, in_features // group * kept)
        for start, stop in row_blocks(out_features, in_features):
            rows = as_integers(weight[start:stop])
            is_stored = (rows << 1) != 0
            _refuse_violation(is_stored, found, start)
            # 1 before 0, lower channels first: every non-zero, then zeros to fill up.
            keep = select_keep(is_stored.to(torch.float16), found, signed=False)
            bits[start:stop] = bitmask.pack_keep(keep)
            picked = torch.where(is_stored, rows, 0)[keep]
            here = as_integers(values[start:stop])
            here.copy_(picked.view(here.shape))
        return cls(bits, values, found, in_features)

    def unpack(self) -> torch.Tensor:
        """Return the dense weight ``[O, K]``."""
        values = as_integers(self.values)
        dense = values.new_zeros(self.shape)
        for start, stop in row_blocks(*self.shape):
            keep = bitmask.unpack_keep(self.bits[start:stop], self.in_features)
            dense[start:stop][keep] = values[start:stop].flatten()
        return dense.view(self.dtype)

    def rows(self, start: int, stop: int) -> GroupPacked:
        """Return rows ``start`` to ``stop``; nothing is copied."""
        bits, values = self.bits[start:stop], self.values[start:stop]
        return GroupPacked(bits, values, self.pattern, self.in_features)

    @property
    def shape(self) -> tuple[int, int]:
        """``(O, K)``."""
        return self.bits.shape[0], self.in_features

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self.values.dtype

    @property
    def density(self) -> float:
        """Share of the channels that are stored, ``N / M``."""
        return self.pattern.density

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.bits.nbytes + self.values.nbytes

    def check(self) -> None:
        """Verify what a kernel relies on: call it on data that came from elsewhere.

        Raises:
            ValueError: naming the part that is wrong.
        """
        kept, group = _groups(self.pattern).group(self.in_features)
        out_features = self.bits.shape[0] if self.bits.dim() == 2 else 0
        words, listed = bitmask.words_of(self.in_features), self.in_features // group
        expect_tensor(
            "GroupPacked", "bits", self.bits, (out_features, words), (torch.int64,)
        )
        expect_tensor(
            "GroupPacked", "values", self.values, (out_features, listed * kept), DTYPES
        )
        if not bitmask.tail_is_zero(self.bits, self.in_features):
            raise ValueError(
                f"GroupPacked {self.shape}: bits at or beyond in_features are set. "
                "Expected zeros there: pack the weight again."
            )
        for start, stop in row_blocks(*self.shape):
            keep = bitmask.unpack_keep(self.bits[start:stop], self.in_features)
            counts = _count_groups(keep, group)
            if (wrong := (counts != kept).nonzero()).numel():
                row, place = wrong[0].tolist()
                raise ValueError(
                    f"GroupPacked {self.shape}: row {start + row}, group {place} has "
                    f"{int(counts[row, place])} bits set. Expected exactly {kept} "
                    f"(pattern {self.pattern}): pack the weight again."
                )


def group_packed_linear(
    x: torch.Tensor, weight: GroupPacked, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply tokens by an N:M weight, reading only what is stored.

    Where the op ``packed`` would run its Triton kernel, so does this; elsewhere the
    reference runs.

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
            f"group_packed_linear: x has shape {tuple(x.shape)}. Expected "
            f"[T, K] = [T, {in_features}]: flatten it first."
        )
    if x.dtype != weight.dtype:
        raise TypeError(
            f"group_packed_linear: x is {x.dtype}, the weight {weight.dtype}. Expected "
            "one dtype: convert the weight before it is packed."
        )
    if bias is not None and bias.shape != (out_features,):
        raise ValueError(
            f"group_packed_linear: bias has shape {tuple(bias.shape)}. "
            f"Expected [{out_features}]."
        )
    dtype = str(x.dtype).removeprefix("torch.")
    chosen = explain("packed", device=x.device.type, dtype=dtype, tokens=x.shape[0])
    if chosen.backend == "triton":
        from nmsparse.ops.packed.group_packed_triton import group_packed_linear_triton

        result: torch.Tensor = group_packed_linear_triton(x, weight, bias)
        return result
    return group_packed_linear_reference(x, weight, bias)


def group_packed_linear_reference(
    x: torch.Tensor, weight: GroupPacked, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``[T, O]`` in pure torch: unpack some rows, multiply in float32."""
    out = x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32)
    wide = x.float()
    for start, stop in row_blocks(*weight.shape):
        out[:, start:stop] = wide @ weight.rows(start, stop).unpack().float().t()
    if bias is not None:
        out += bias.float()
    return out.to(x.dtype)


def _groups(pattern: str | NMPattern) -> NMPattern:
    """Return a pattern that fits words of 64 channels, or refuse it."""
    found = parse_pattern(pattern)
    if not isinstance(found, NMPattern):
        raise ValueError(
            f"GroupPacked: pattern {found} has no groups. Expected N:M: pack other "
            "weights with PackedWeight."
        )
    word = bitmask.WORD_BITS
    if word % found.m and found.m % word:
        raise ValueError(
            f"GroupPacked: pattern {found}. Expected an M that divides {word} or is a "
            f"multiple of it: pack other weights with PackedWeight."
        )
    return found


def _refuse_violation(is_stored: torch.Tensor, pattern: NMPattern, start: int) -> None:
    """Refuse rows (``[rows, K]`` bool) with more than N non-zeros in a group."""
    counts = _count_groups(is_stored, pattern.m)
    if (wrong := (counts > pattern.n).nonzero()).numel():
        row, place = wrong[0].tolist()
        first = place * pattern.m
        raise ValueError(
            f"GroupPacked: row {start + row}, group {place} (channels {first} to "
            f"{first + pattern.m - 1}) of the weight holds {int(counts[row, place])} "
            f"non-zeros. Expected at most {pattern.n} (pattern {pattern}): prune the "
            "weight to the pattern, or pack it with PackedWeight."
        )


def _count_groups(keep: torch.Tensor, group: int) -> torch.Tensor:
    """Return how many of each group are true, ``[rows, K // M]``."""
    counts: torch.Tensor = keep.unflatten(-1, (keep.shape[-1] // group, group)).sum(-1)
    return counts
