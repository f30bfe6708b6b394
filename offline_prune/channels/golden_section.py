"""Golden-section search for the minimum of a function of one number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_PHI = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True, slots=True)
class Minimum:
    """The best point that was seen.

    Attributes:
        at: the point.
        value: the function there; infinite if it was NaN at every point.
        evaluations: how often the function was called.
    """

    at: float
    value: float
    evaluations: int


def golden_section(
    function: Callable[[float], float],
    bounds: tuple[float, float],
    *,
    tolerance: float,
    evaluations: int,
) -> Minimum:
    """Narrow a bracket by the golden ratio, with one new evaluation a step.

    Finds the minimum of a unimodal function to ``tolerance``. Of any other function
    the best point seen is returned.

    Args:
        function: NaN counts as infinite.
        bounds: the first bracket, ascending.
        tolerance: width of the bracket at which the search ends, above 0.
        evaluations: most calls of ``function``, at least 2.
    """
    low, high = bounds
    seen: list[tuple[float, float]] = []  # value, point

    def value(point: float) -> float:
        found = function(point)
        found = math.inf if math.isnan(found) else found
        seen.append((found, point))
        return found

    left, right = high - _PHI * (high - low), low + _PHI * (high - low)
    at_left, at_right = value(left), value(right)
    while True:
        # The minimum of a unimodal function is on the side of the lower point; the
        # other point inside that side serves the next bracket.
        leftward = at_left <= at_right
        if leftward:
            high, right, at_right = right, left, at_left
        else:
            low, left, at_left = left, right, at_right
        if high - low < tolerance or len(seen) >= evaluations:
            break
        if leftward:
            left = high - _PHI * (high - low)
            at_left = value(left)
        else:
            right = low + _PHI * (high - low)
            at_right = value(right)
    best = min(seen)
    return Minimum(at=best[1], value=best[0], evaluations=len(seen))
