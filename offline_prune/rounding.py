"""Which units to round up, so that the weighted sum comes nearest its target."""

from __future__ import annotations

from collections.abc import Sequence

# Fractions are whole multiples of 1 / UNIT: equal ones stay equal, sums are exact.
UNIT = 1 << 20
# Sums followed at once. Decoder blocks have few distinct sizes, so that all reachable
# sums fit; beyond, those nearest the expected sum are followed.
_STATES = 4096


def round_up(
    fractions: Sequence[int], sizes: Sequence[int], *, missing: float
) -> list[int]:
    """Choose the units whose sizes add up to nearest ``missing``.

    Of the choices that come equally near, the one with the least error of rounding
    weighted by size, then the one that rounds the first units up.

    Args:
        fractions: what rounding down loses, in ``1 / UNIT``; 0 is never rounded up.
        sizes: number of weights of each unit.
        missing: sum that is wanted.

    Returns:
        1 for a unit to round up, else 0.
    """
    # Reached sum -> (weighted fractions rounded up, choices as binary digits). With
    # the sum given, more fraction rounded up is less total error, and a larger number
    # of choices has its ones at earlier units.
    states: dict[int, tuple[int, int]] = {0: (0, 0)}
    expected = 0.0
    for fraction, size in zip(fractions, sizes, strict=True):
        grown: dict[int, tuple[int, int]] = {}
        for reached, (gain, choices) in states.items():
            for up in (0, 1) if fraction else (0,):
                key = reached + up * size
                value = (gain + up * size * fraction, 2 * choices + up)
                grown[key] = max(value, grown.get(key, value))
        expected += fraction / UNIT * size
        states = grown
        if len(grown) > _STATES:
            nearest = sorted(grown, key=lambda key: (abs(key - expected), key))
            states = {key: grown[key] for key in nearest[:_STATES]}
    # Halfway between two sums, the one that keeps more.
    best = min(states, key=lambda key: (round(abs(key - missing), 3), -key))
    digits = bin(states[best][1])[2:].zfill(len(sizes))
    return [int(digit) for digit in digits]
