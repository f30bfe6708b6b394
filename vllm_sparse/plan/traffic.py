"""Bytes of a weight that a step with few tokens reads, and the time that takes.

With few tokens a linear layer takes as long as reading its weight, plus what every
launch of a kernel costs whatever it reads::

    seconds = bytes of the weight that are read / bandwidth + launches * fixed

``vllm-sparse plan`` and ``benchmarks/gpu_roofline.py`` both count with this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

# Kernels of ours take steps of so many tokens at most.
MAX_TOKENS: Final = 16
# From so many tokens a shared list is worth its launch.
MIN_SHARED_TOKENS: Final = 3
_WORD_BITS = 64
_OFFSET_BYTES = 8


class Weight(Protocol):
    """A dense weight ``[O, K]``."""

    @property
    def in_features(self) -> int:
        """K."""

    @property
    def out_features(self) -> int:
        """O."""

    @property
    def dense_bytes(self) -> int:
        """Bytes of all elements."""


def union(density: float, tokens: int) -> float:
    """Return the share of channels that T tokens keep together, if independent.

    Args:
        density: share that each token keeps.
        tokens: T.
    """
    return 1 - (1 - density) ** tokens


def packed_bytes(weight: Weight, density: float, *, offsets: bool) -> float:
    """Return the bytes of a packed weight: values, one bit a channel, row starts.

    Args:
        weight: the dense weight.
        density: share of its elements that are not zero.
        offsets: whether rows have a table of starts, as rows of different length need.
    """
    words = -(-weight.in_features // _WORD_BITS)
    beside = weight.out_features * words * _WORD_BITS // 8
    beside += _OFFSET_BYTES * (weight.out_features + 1) * offsets
    return weight.dense_bytes * density + beside


@dataclass(frozen=True, slots=True)
class Form:
    """One way to hold and read a weight.

    Attributes:
        name: for people to read.
        read: bytes of a weight that a step with T tokens reads.
        launches: kernels a layer needs.
    """

    name: str
    read: Callable[[Weight, int], float]
    launches: int = 1

    def seconds(
        self, weight: Weight, tokens: int, bandwidth: float, fixed: float
    ) -> float:
        """Return the time of one layer.

        Args:
            weight: of the layer.
            tokens: T.
            bandwidth: bytes a second.
            fixed: seconds a launch costs besides reading.
        """
        return self.read(weight, tokens) / bandwidth + self.launches * fixed


DENSE: Final = Form("dense", lambda weight, tokens: weight.dense_bytes)


def lists(density: float) -> Form:
    """Every token has a list of its own: a row is read once if any token keeps it.

    The selection is a launch of its own.
    """
    return Form(
        "lists",
        lambda weight, tokens: weight.dense_bytes * union(density, tokens),
        launches=2,
    )


def shared(density: float) -> Form:
    """One list for all tokens; the scores of all are one more launch."""
    return Form(
        "shared list", lambda weight, tokens: weight.dense_bytes * density, launches=3
    )


def packed(density: float, *, offsets: bool = True) -> Form:
    """Values and bits, the same for any number of tokens."""
    return Form(
        "packed", lambda weight, tokens: packed_bytes(weight, density, offsets=offsets)
    )
