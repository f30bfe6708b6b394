"""``PackedWeight``: a pruned weight as one bit a channel plus its non-zero values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nmsparse import bitmask
from nmsparse.packed_tensors import as_integers, expect_tensor, is_stored, row_blocks

# Zeros behind the values, so that a vector load may run over the end.
PADDING = 64
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A pruned weight ``[O, K]``: one bit a channel plus the non-zero values.

    Any pattern has this form: the rows of an N:M weight merely hold equally many values
    (at most). An element is stored if it is not zero; NaN and infinity are. ``-0.0`` is
    zero: pruning by multiplication makes it, and it comes back as ``+0.0``.

    Attributes:
        bits: ``[O, ceil(K / 64)]`` int64; bit ``j % 64`` of word ``j // 64`` is set if
            channel j is stored. Bits at or beyond K are zero.
        values: ``[stored + 64]`` float16, bfloat16 or float32, row after row, ascending
            channels; the last 64 are zeros.
        offsets: ``[O + 1]`` int64, start of each row in ``values``.
        in_features: K.
    """

    bits: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    in_features: int

    @classmethod
    def pack(cls, weight: torch.Tensor) -> PackedWeight:
        """Pack a dense weight; beyond the result it needs memory for a few rows only.

        Args:
            weight: ``[O, K]`` float16, bfloat16 or float32. Not modified.

        Raises:
            ValueError: if ``weight`` is not two-dimensional.
            TypeError: for another dtype.
        """
        if weight.dim() != 2:
            raise ValueError(
                f"pack: weight has shape {tuple(weight.shape)}. Expected [O, K]."
            )
        if weight.dtype not in DTYPES:
            raise TypeError(
                f"pack: weight is {weight.dtype}. Expected float16, bfloat16 or "
                "float32: quantized weights cannot be packed."
            )
        out_features, in_features = weight.shape
        words = bitmask.words_of(in_features)
        bits = weight.new_zeros(out_features, words, dtype=torch.int64)
        for start, stop in row_blocks(out_features, in_features):
            bits[start:stop] = bitmask.pack_keep(is_stored(weight[start:stop]))
        offsets = row_offsets(bits)
        values = weight.new_zeros(int(offsets[-1]) + PADDING)
        for start, stop in row_blocks(out_features, in_features):
            block = weight[start:stop].reshape(-1)
            picked = block.index_select(0, _positions(is_stored(block)))
            values[offsets[start] : offsets[stop]] = picked
        return cls(bits, values, offsets, in_features)

    def unpack(self) -> torch.Tensor:
        """Return the dense weight ``[O, K]``."""
        values = as_integers(self.values)
        dense = values.new_zeros(self.shape)
        for start, stop in row_blocks(*self.shape):
            keep = bitmask.unpack_keep(self.bits[start:stop], self.in_features)
            block = values[self.offsets[start] : self.offsets[stop]]
            dense[start:stop].view(-1).scatter_(0, _positions(keep), block)
        return dense.view(self.dtype)

    def rows(self, start: int, stop: int) -> PackedWeight:
        """Return rows ``start`` to ``stop``, for unpacking in pieces.

        The bits are shared, the values are copied: they need zeros of their own behind
        them.

        Raises:
            ValueError: unless ``0 <= start <= stop <= O``.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(
                f"rows {start} to {stop} of a packed weight with {self.shape[0]} rows. "
                "Expected 0 <= start <= stop <= rows."
            )
        offsets = self.offsets[start : stop + 1]
        values = self.values[offsets[0] : offsets[-1]]
        padded = torch.cat([values, values.new_zeros(PADDING)])
        return PackedWeight(
            self.bits[start:stop], padded, offsets - offsets[0], self.in_features
        )

    @property
    def shape(self) -> tuple[int, int]:
        """``(O, K)``."""
        return self.bits.shape[0], self.in_features

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values."""
        return self.values.dtype

    @property
    def stored(self) -> int:
        """Number of stored values."""
        return self.values.numel() - PADDING

    @property
    def density(self) -> float:
        """Share of the channels that are stored; 0 for an empty weight."""
        return self.stored / max(1, self.shape[0] * self.in_features)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(x.nbytes for x in (self.bits, self.values, self.offsets))

    def check(self) -> None:
        """Verify what a kernel relies on: call it on data that came from elsewhere.

        Raises:
            ValueError: naming the part that is wrong.
        """
        out_features = self.bits.shape[0] if self.bits.dim() == 2 else 0
        words = bitmask.words_of(self.in_features)
        expect_tensor(
            "PackedWeight", "bits", self.bits, (out_features, words), (torch.int64,)
        )
        expect_tensor(
            "PackedWeight", "offsets", self.offsets, (out_features + 1,), (torch.int64,)
        )
        stored = max(0, self.values.numel() - PADDING)
        expect_tensor(
            "PackedWeight", "values", self.values, (stored + PADDING,), DTYPES
        )
        expected = row_offsets(self.bits)
        found = {
            "bits at or beyond in_features are set": not bitmask.tail_is_zero(
                self.bits, self.in_features
            ),
            "offsets disagree with the bits of the rows": not torch.equal(
                self.offsets, expected
            ),
            f"{stored} values are stored, but {int(expected[-1])} bits are set": (
                stored != int(expected[-1])
            ),
            f"the last {PADDING} values are not zero": bool(
                self.values[stored:].count_nonzero()
            ),
        }
        for problem, is_there in found.items():
            if is_there:
                raise ValueError(
                    f"PackedWeight {self.shape}: {problem}. Pack the weight again."
                )


def row_offsets(bits: torch.Tensor) -> torch.Tensor:
    """Return ``[O + 1]`` int64 starts of rows whose bits are ``[O, W]`` int64."""
    offsets = bits.new_zeros(len(bits) + 1)
    torch.cumsum(bitmask.count_bits(bits), 0, out=offsets[1:])
    return offsets


def _positions(keep: torch.Tensor) -> torch.Tensor:
    """Return where ``keep`` is true, as ascending int64 indices into it flattened."""
    flat = keep.reshape(-1)
    if flat.is_cpu:  # a tenth of torch's time
        return torch.from_numpy(np.flatnonzero(flat.numpy()))
    return flat.nonzero().view(-1)
