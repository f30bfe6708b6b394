"""Random weights on a device, in every form and as many copies as a benchmark needs."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch

from nmsparse import PackedWeight, parse_pattern
from nmsparse.criteria import DEFAULT_CRITERION
from nmsparse.ops.packed.cslt import SemiStructured
from nmsparse.ops.packed.group_packed import GroupPacked
from nmsparse.ops.sparsify.reference import sparsify_reference

# Fewest copies of a weight, and how often they have to fill the L2 cache together.
FEWEST_COPIES, FILLS = 5, 3
# The smallest share of a weight that some mode reads.
SMALLEST_READ = 1 / 4


class Shape(NamedTuple):
    """A layer: K and O."""

    in_features: int
    out_features: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read ``4096x14336``, K first."""
        k, _, o = text.partition("x")
        return cls(int(k), int(o))

    def __str__(self) -> str:
        return f"{self.in_features}x{self.out_features}"


def copies_for(weight_bytes: int, cache_bytes: int) -> int:
    """Return how many copies keep even the mode that reads least out of the cache."""
    least = weight_bytes * SMALLEST_READ
    return max(FEWEST_COPIES, math.ceil(FILLS * cache_bytes / least))


class Weights:
    """One random weight in every form that some mode reads; a form is made when asked.

    Args:
        shape: K and O.
        dtype: float16 or bfloat16.
        device: where.
        copies: how many copies of a form take turns.
    """

    def __init__(
        self, shape: Shape, dtype: torch.dtype, device: torch.device, copies: int
    ) -> None:
        self.copies = copies
        size = (shape.out_features, shape.in_features)
        self.dense = torch.randn(size, dtype=dtype, device=device) * 0.02

    def _clones(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return [tensor, *(tensor.clone() for _ in range(self.copies - 1))]

    @cached_property
    def o_major(self) -> list[torch.Tensor]:
        """``[O, K]``, as vLLM holds it."""
        return self._clones(self.dense)

    @cached_property
    def k_major(self) -> list[torch.Tensor]:
        """``[K, O]``, as our kernels and the peer read it."""
        return self._clones(self.dense.t().contiguous())

    @cached_property
    def half(self) -> torch.Tensor:
        """``[O, K]`` without the smaller half of each row."""
        return sparsify_reference(self.dense, parse_pattern("50%"), DEFAULT_CRITERION)

    @cached_property
    def two_of_four(self) -> torch.Tensor:
        """``[O, K]`` with 2 of every 4."""
        return sparsify_reference(self.dense, parse_pattern("2:4"), DEFAULT_CRITERION)

    @cached_property
    def packed(self) -> list[PackedWeight]:
        """``half``, packed."""
        once = PackedWeight.pack(self.half)
        return [
            replace(once, bits=once.bits.clone(), values=once.values.clone())
            for _ in range(self.copies)
        ]

    @cached_property
    def group_packed(self) -> list[GroupPacked]:
        """``two_of_four``, packed by groups."""
        pattern = parse_pattern("2:4")
        return [GroupPacked.pack(self.two_of_four, pattern) for _ in range(self.copies)]

    @cached_property
    def semi_structured(self) -> list[SemiStructured]:
        """``two_of_four``, compressed by cuSPARSELt."""
        once = SemiStructured.compress(self.two_of_four)
        return [
            replace(once, compressed=once.compressed.clone())
            for _ in range(self.copies)
        ]
