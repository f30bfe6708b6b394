"""Is a mode's result right, and which of its tiles is fastest?"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpu_modes import Mode

# Errors of a 16-bit result against float32, as shares of the result's size: of all of
# it, and of its worst element. A channel too many or too few is beyond them.
MOST_RMS, MOST_WORST = 0.006, 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found.

    Attributes:
        wrong: what is wrong, or None.
        error: root mean square of the error over that of the result.
        repeatable: whether a second call gave the same bits.
    """

    wrong: str | None
    error: float
    repeatable: bool


def check(mode: Mode, tiles: Any, inputs: int, copies: int) -> Verdict:
    """Compare results with what they have to be.

    Args:
        mode: what is checked.
        tiles: one of its tiles.
        inputs: how many activations it has.
        copies: how many copies of the weight; the first ones and the last are read.
    """
    worst = 0.0
    first = mode.run(0, tiles)
    for number in sorted({0, 1, copies - 1}):
        found = first if number == 0 else mode.run(number, tiles)
        expected = mode.expected(number % inputs)
        if found.shape != expected.shape:
            wrong = f"shape {tuple(found.shape)}, not {tuple(expected.shape)}"
            return Verdict(wrong, torch.inf, False)
        size = expected.square().mean().sqrt().clamp_min(1e-30)
        apart = (found.float() - expected).abs()
        allowed = MOST_WORST * (size + expected.abs())
        rms = float(apart.square().mean().sqrt() / size)
        worst = max(worst, rms)
        if rms > MOST_RMS or not bool((apart <= allowed).all()):
            return Verdict(f"call {number}: error {rms:.4f} of the result", rms, False)
    return Verdict(None, round(worst, 6), torch.equal(first, mode.run(0, tiles)))


def fastest(
    mode: Mode,
    inputs: int,
    copies: int,
    seconds: Callable[[Any], float],
    *,
    most: int | None = None,
) -> tuple[Any, Verdict]:
    """Return the fastest tiles that are right, and what was found about them.

    Tiles that are wrong or do not compile are said on standard error and left out. If
    none is right, the verdict is that of the first one.

    Args:
        mode: its tiles are tried.
        inputs: how many activations it has.
        copies: how many copies of the weight.
        seconds: times tiles; not called if there is nothing to choose.
        most: how many to try; None for all.

    Raises:
        Exception: what the last tiles raised, if none ran.
    """
    tried = mode.tiles[:most]
    least, best, failure = torch.inf, None, None
    for tiles in tried:
        try:
            verdict = check(mode, tiles, inputs, copies)
            if verdict.wrong:
                print(f"{tiles}: {verdict.wrong}", file=sys.stderr)
                best = best or (tiles, verdict)
                continue
            taken = seconds(tiles) if len(tried) > 1 else 0.0
        except Exception as error:
            traceback.print_exc()
            failure = error
            continue
        if taken < least:
            least, best = taken, (tiles, verdict)
    if best is None:
        raise failure or RuntimeError("there are no tiles to try")
    return best
