"""The gate: what the block's output on held-out windows says about a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from offline_prune.online.fit.resident import Resident
from offline_prune.online.fit.tokens import (
    relative_errors,
    robust_error,
    token_weights,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Errors of the block's output on the held-out windows.

    Attributes:
        objective: robust error against the target, mean over tokens: what the gate
            compares.
        error: relative error against the dense stream, median over tokens.
    """

    objective: float
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """One window that no fit sees.

    Attributes:
        position: its number.
        hidden: ``[1, T, D]``, input of the block in the sparse stream.
        wanted: ``[1, T, D]``, the target.
        dense: ``[1, T, D]``, output of the block in the dense stream.
    """

    position: int
    hidden: torch.Tensor
    wanted: torch.Tensor
    dense: torch.Tensor


def judge(
    resident: Resident, windows: Sequence[HeldOut], *, weight_clip: float
) -> Verdict:
    """Run the block as its layers are set, and return how far it is off.

    Position 0 does not count.

    Args:
        resident: the block.
        windows: at least one.
        weight_clip: greatest weight of a token, in medians of its window.
    """
    total, tokens, errors = 0.0, 0, []
    for window in windows:
        out = resident.output(window.position, window.hidden)[0]
        wanted = window.wanted[0]
        weights = token_weights(wanted, clip=weight_clip, first=True)
        total += float(robust_error(out, wanted, weights))
        tokens += int((weights > 0).sum())
        errors.append(relative_errors(out[1:], window.dense[0, 1:]))
    found = torch.cat(errors)
    # Windows of one token have nothing to say.
    median = float(found.median()) if len(found) else 0.0
    return Verdict(total / max(1, tokens), median)
