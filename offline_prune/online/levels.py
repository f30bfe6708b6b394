"""Levels of density: what a layer may keep of its input under a budget.

With N:M patterns of a fixed M the levels are N = 1..M. With whole rows they are
sixteenths of the row, so that both are comparable. The last level is dense.
"""

from __future__ import annotations

from dataclasses import dataclass

from nmsparse.pattern import NMPattern, Pattern, Unstructured

ROW_LEVELS = 16


@dataclass(frozen=True, slots=True)
class Levels:
    """The densities ``1 / count .. count / count``.

    Attributes:
        m: M of the patterns; None if a row is one group.
        count: number of levels, the last of them dense.
    """

    m: int | None
    count: int

    @classmethod
    def nm(cls, group: str) -> Levels:
        """Return the levels of N:M patterns."""
        return cls(int(group), int(group))

    def pattern(self, level: int) -> Pattern:
        """Return the pattern of a level from 1 to ``count``."""
        if self.m is not None:
            return NMPattern(level, self.m)
        return Unstructured(1.0 - level / self.count)

    def kept(self, level: int, in_features: int) -> int:
        """Return how many of K channels a token keeps.

        Raises:
            ValueError: if M does not divide K.
        """
        kept, group = self.pattern(level).group(in_features)
        return in_features // group * kept
