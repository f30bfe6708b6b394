"""Order of input channels that raises the score an N:M pattern keeps.

RIA's channel permutation: Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training
Pruning Method for Large Language Models", ICLR 2024. Channels are dealt to groups by
their total score in a serpentine; then, for each of the M places of a group, the
channels at that place are dealt anew. The paper solves a linear assignment there
(``method="assignment"``, needs scipy). ``"swaps"``, our default, exchanges pairs of
channels, best gain first: no dependency, and nearly the same gain.

Only the search: a permuted weight is N:M in permuted order alone, so whoever uses the
order must also permute the producer's rows or gather the input.
"""

from __future__ import annotations

from typing import Literal

import torch

from nmsparse.pattern import NMPattern
from offline_prune.permutation.assignment import optimal, swaps

Method = Literal["swaps", "assignment"]
_DEAL = {"swaps": swaps, "assignment": optimal}
# Gain below this part of the kept score does not pay for another round.
_WORTH = 1e-6


def kept_score(
    scores: torch.Tensor, pattern: NMPattern, order: torch.Tensor | None = None
) -> float:
    """Return the sum of the scores that the pattern keeps.

    Args:
        scores: ``[O, K]``, higher is kept.
        pattern: N:M, M divides K.
        order: int64 ``[K]``: place ``j`` holds channel ``order[j]``; as they are if
            None.

    Raises:
        ValueError: if K is not a multiple of M.
    """
    kept, group = pattern.group(scores.shape[1])
    ordered = scores if order is None else scores[:, order]
    best = ordered.unflatten(1, (-1, group)).topk(kept, dim=-1).values
    return float(best.double().sum())


def serpentine(scores: torch.Tensor, pattern: NMPattern) -> torch.Tensor:
    """Deal channels to groups by total score, every second stripe backwards.

    Args:
        scores: ``[O, K]``.
        pattern: N:M, M divides K.

    Returns:
        int64 ``[K]``, the order; group ``g`` is places ``g * M`` to ``g * M + M - 1``.

    Raises:
        ValueError: if K is not a multiple of M.
    """
    _, group = pattern.group(scores.shape[1])
    totals = scores.double().sum(0)
    stripes = totals.argsort(descending=True, stable=True).view(group, -1).clone()
    stripes[1::2] = stripes[1::2].flip(1)
    return stripes.T.reshape(-1)


def refine(
    scores: torch.Tensor,
    pattern: NMPattern,
    order: torch.Tensor,
    *,
    rounds: int = 2,
    method: Method = "swaps",
    parts: int = 1,
) -> torch.Tensor:
    """Deal the channels of each place anew until the kept score stops rising.

    Time is ``rounds * O * K^2 / (M * parts)`` per pattern of M, memory ``O * K``.

    Args:
        scores: ``[O, K]``, higher is kept.
        pattern: N:M, M divides K.
        order: int64 ``[K]`` to begin with; not changed.
        rounds: most passes over the M places.
        method: pairs of channels, or scipy's optimal assignment.
        parts: deal within so many interleaved sets of groups, for wide layers; at
            least 1.

    Returns:
        int64 ``[K]``. Its kept score is at least that of ``order``.

    Raises:
        MissingDependencyError: for "assignment" without scipy.
        ValueError: if K is not a multiple of M.
    """
    kept, group = pattern.group(scores.shape[1])
    order = order.clone()
    if kept == group or scores.shape[1] == group:
        return order
    best = kept_score(scores, pattern, order)
    for _ in range(rounds):
        before = best
        for place in range(group):
            trial = order.clone()
            groups = trial.view(-1, group)  # a view: writing deals
            for part in range(min(parts, len(groups))):
                chosen = groups[part::parts]
                gains = joining_gains(scores, chosen, place=place, kept=kept)
                chosen[:, place] = chosen[_DEAL[method](gains), place]
            value = kept_score(scores, pattern, trial)
            if value > best:
                order, best = trial, value
        if best - before <= _WORTH * abs(before):
            break
    return order


def joining_gains(
    scores: torch.Tensor, groups: torch.Tensor, *, place: int, kept: int
) -> torch.Tensor:
    """Return what each channel at ``place`` adds to each group that lacks that place.

    A channel adds to a row of a group what it exceeds the N-th best of the others by.

    Args:
        scores: ``[O, K]``.
        groups: int64 ``[G, M]``, channels of each group.
        place: 0 to M - 1.
        kept: N, below M.

    Returns:
        float32 ``[G, G]``: entry ``(g, r)`` for the channel of group ``r`` in ``g``.
    """
    rest = torch.cat([groups[:, :place], groups[:, place + 1 :]], dim=1)
    floor = scores[:, rest].topk(kept, dim=-1).values[..., -1]  # [O, G]
    joining = scores[:, groups[:, place]]  # [O, G]
    rows = [
        (joining - floor[:, index : index + 1]).clamp_(min=0).sum(0)
        for index in range(len(groups))
    ]
    return torch.stack(rows)
