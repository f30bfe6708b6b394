"""Deal one channel to each group: by swaps of pairs, or optimally with scipy."""

from __future__ import annotations

import importlib

import torch

from offline_prune.errors import MissingDependencyError


def swaps(gains: torch.Tensor) -> torch.Tensor:
    """Exchange the channels of disjoint pairs of groups, best exchange first.

    Two groups that are each other's best partner exchange; the rest looks again.
    Groups of different pairs share no channel, so the gains add up.

    Args:
        gains: ``[G, G]``: what channel ``r`` adds to group ``g``; channel ``g`` is
            there now.

    Returns:
        int64 ``[G]``: group ``g`` gets channel ``result[g]``. No total gain below that
        of staying.
    """
    gains = gains.double()
    own = gains.diagonal()
    # Sums of two are symmetric to the last bit, so partners agree on their gain.
    profit = (gains + gains.T) - (own[:, None] + own[None, :])
    profit.fill_diagonal_(0.0)
    place = torch.arange(len(gains), device=gains.device)
    result = place.clone()
    while True:
        value, partner = profit.max(dim=1)
        mutual = (partner[partner] == place) & (value > 0)
        if not bool(mutual.any()):
            return result
        result[mutual] = partner[mutual]
        profit[mutual] = 0.0
        profit[:, mutual] = 0.0


def optimal(gains: torch.Tensor) -> torch.Tensor:
    """Return the assignment with the largest total gain, int64 ``[G]``.

    Args:
        gains: ``[G, G]``: what channel ``r`` adds to group ``g``.

    Raises:
        MissingDependencyError: if scipy is not installed.
    """
    try:
        scipy = importlib.import_module("scipy.optimize")
    except ImportError:
        raise MissingDependencyError(
            'Channel permutation: method "assignment" needs scipy, which is not '
            "installed. Expected it in this environment: pip install scipy, or use "
            'method "swaps".'
        ) from None
    _, columns = scipy.linear_sum_assignment(gains.cpu().numpy(), maximize=True)
    return torch.as_tensor(columns, dtype=torch.int64, device=gains.device)
