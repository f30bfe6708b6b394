"""``TokenLists``: the channels that each token of a step brings to the product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Channel numbers up to here fit int16, which halves the bytes of a list.
NARROW = 32768


@dataclass(frozen=True, slots=True, eq=False)
class TokenLists:
    """Lists of channels of a step's T tokens, on a device.

    Attributes:
        values: ``[T, C]`` in the dtype of x, C >= kept. With R = T, entry i of token t
            belongs to channel ``indices[t, i]``; with one list for all (R = 1) to
            ``indices[0, i]``. A shift is subtracted already.
        indices: ``[R, C]`` int16 where K <= 32768, else int32.
        counts: ``[R]`` int32: how many entries count, kept or, of a list that stays
            dense, K. Entries at or beyond it are undefined.
        in_features: K.
        kept: entries of a sparse list, ``K // M * N``.
        scale: ``[T]`` float32 that a token's product is multiplied by, 1 for a dense
            token; None for 1.
        token_shift: ``[T]`` float32 that was subtracted, 0 for a dense token; None
            for 0.
        sparse: ``[T]`` bool: which tokens are sparsified; None for all. A dense token
            has channels 0 to K - 1 and the values of x itself, and the terms of a
            product (constant, output_scale, addend, row_sum) pass it by.
    """

    values: torch.Tensor
    indices: torch.Tensor
    counts: torch.Tensor
    in_features: int
    kept: int
    scale: torch.Tensor | None = None
    token_shift: torch.Tensor | None = None
    sparse: torch.Tensor | None = None

    @property
    def is_shared(self) -> bool:
        """Whether one list serves all tokens. One token alone has its own."""
        return self.indices.shape[0] == 1 and self.values.shape[0] != 1


def index_dtype_of(in_features: int) -> torch.dtype:
    """Return the narrowest dtype that the kernels know for channel numbers."""
    return torch.int16 if in_features <= NARROW else torch.int32
