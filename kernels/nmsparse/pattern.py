"""Sparsity patterns: which entries of a row may be non-zero.

``NMPattern(n=8, m=16)``, written ``8:16``, keeps at most 8 of every 16 consecutive
elements. ``Unstructured(0.5)``, written ``50%``, keeps half of each row with no
structure; it is the quality reference for the N:M patterns. No torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from nmsparse.errors import printable

# Keys of the deterministic selection hold the position in a group in 16 bits.
MAX_M = 1 << 16

_NM = re.compile(r"([0-9]{1,9})\s*(?::|of)\s*([0-9]{1,9})")
_PERCENT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,400})?)\s*%")
_HINT = (
    "Expected N:M with 1 <= N <= M, for example 2:4, 4:8, 8:16 or 16:32 "
    "(N is the number KEPT of every M), or a share of zeros such as 50%."
)


@dataclass(frozen=True, slots=True)
class NMPattern:
    """At most ``n`` non-zeros in every ``m`` consecutive elements of a row.

    Raises:
        ValueError: unless ``1 <= n <= m <= 65536``.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m <= MAX_M:
            raise ValueError(f"Sparsity pattern {self.n}:{self.m} is invalid. {_HINT}")

    @property
    def density(self) -> float:
        """Fraction of elements kept, ``n / m``."""
        return self.n / self.m

    @property
    def sparsity(self) -> float:
        """Fraction of elements removed, ``1 - n / m``."""
        return 1.0 - self.density

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed (``n == m``)."""
        return self.n == self.m

    @property
    def slug(self) -> str:
        """Name for files and repositories, where a colon is not allowed: ``8of16``."""
        return f"{self.n}of{self.m}"

    @classmethod
    def from_density(cls, density: float, *, m: int) -> NMPattern:
        """Return the pattern at fixed ``m`` whose density is nearest to ``density``.

        This is how a per-layer budget becomes a pattern: ``m`` stays the same for the
        whole model and each layer has its own ``n`` (at least 1).
        """
        if not 0.0 <= density <= 1.0:
            raise ValueError(
                f"density {density} is invalid. Expected 0 <= density <= 1."
            )
        return cls(min(m, max(1, round(density * m))), m)

    def group(self, in_features: int) -> tuple[int, int]:
        """Return (kept, group size) along a row of ``in_features`` elements.

        Raises:
            ValueError: if ``in_features`` is not a multiple of ``m``.
        """
        if in_features % self.m:
            raise ValueError(
                f"in_features {in_features} is not a multiple of m={self.m} "
                f"(pattern {self}). Choose an M that divides {in_features}, or leave "
                "this layer out with `ignore`."
            )
        return self.n, self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True, slots=True)
class Unstructured:
    """The ``round(in_features * (1 - sparsity))`` best elements of each row.

    Args:
        target_sparsity: fraction of each row that is removed, from 0 to below 1.

    Raises:
        ValueError: if ``target_sparsity`` is out of range.
    """

    target_sparsity: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.target_sparsity < 1.0:
            raise ValueError(
                f"Unstructured sparsity {self.target_sparsity} is invalid. "
                "Expected 0 <= sparsity < 1, written as a share of zeros such as 50%."
            )

    @property
    def density(self) -> float:
        """Fraction of elements kept."""
        return 1.0 - self.target_sparsity

    @property
    def sparsity(self) -> float:
        """Fraction of elements removed."""
        return self.target_sparsity

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed."""
        return self.target_sparsity == 0.0

    @property
    def slug(self) -> str:
        """Name for files and repositories: ``unstructured50``."""
        return f"unstructured{_percent(self.target_sparsity)}"

    def group(self, in_features: int) -> tuple[int, int]:
        """Return (kept, group size): the whole row is one group."""
        if not 1 <= in_features <= MAX_M:
            raise ValueError(
                f"in_features {in_features} is out of range for unstructured "
                f"selection. Expected 1 to {MAX_M}."
            )
        return max(1, round(in_features * self.density)), in_features

    def __str__(self) -> str:
        return f"{_percent(self.target_sparsity)}%"


Pattern: TypeAlias = NMPattern | Unstructured


def _percent(share: float) -> str:
    """Return ``share`` times 100 as text that reads back to exactly the same float."""
    text = f"{Decimal(repr(float(share))).scaleb(2):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_pattern(text: str | NMPattern | Unstructured) -> Pattern:
    """Read ``8:16`` (also ``8of16``) or ``50%``.

    Raises:
        ValueError: if the text is no valid pattern; the message says what is.
    """
    if isinstance(text, NMPattern | Unstructured):
        return text
    # Nothing else has a form that could fit, and some values cannot even be shown.
    stripped = text.strip().lower() if isinstance(text, str) else ""
    if found := _NM.fullmatch(stripped):
        return NMPattern(int(found[1]), int(found[2]))
    if found := _PERCENT.fullmatch(stripped):
        return Unstructured(float(Decimal(found[1]).scaleb(-2)))
    shown = printable(text, limit=80) if isinstance(text, str) else type(text).__name__
    raise ValueError(f"Sparsity pattern '{shown}' is not understood. {_HINT}")
